// The parts of a cluster that the lab needs, in one program: etcd, Kubernetes' own, kubectl and CoreDNS, each started by its own name as
// the first argument (or by the name that the program was called under). One build of their shared packages takes a third of the time
// and of the space of as many programs.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// What can be started. Each parses os.Args itself.
var components = map[string]func(){
	"etcd":                    func() { etcdmain.Main(os.Args) },
	"kube-apiserver":          func() { command(apiserver.NewAPIServerCommand()) },
	"kube-controller-manager": func() { command(controllermanager.NewControllerManagerCommand()) },
	"kube-scheduler":          func() { command(scheduler.NewSchedulerCommand()) },
	// It looks for signals itself, which one program may do once.
	"kubelet":    func() { command(kubelet.NewKubeletCommand(context.Background())) },
	"kube-proxy": func() { command(proxy.NewProxyCommand()) },
	"kubectl": func() {
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			os.Exit(1)
		}
	},
	"coredns": func() {
		// In the order in which a question passes them (CoreDNS' plugin.cfg).
		dnsserver.Directives = []string{"ready", "errors", "cache", "kubernetes"}
		coremain.Run()
	},
}

func main() {
	name := filepath.Base(os.Args[0])
	run, known := components[name]
	if !known {
		if len(os.Args) > 1 {
			run, known = components[os.Args[1]]
			os.Args = os.Args[1:]
		}
	}
	if !known {
		names := make([]string, 0, len(components))
		for name := range components {
			names = append(names, name)
		}
		sort.Strings(names)
		fmt.Fprintf(os.Stderr, "usage: control-plane %s [flags]\n", strings.Join(names, "|"))
		os.Exit(2)
	}
	run()
}

func command(command *cobra.Command) {
	os.Exit(cli.Run(command))
}
