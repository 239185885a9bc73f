// The lab's control plane in one program: etcd, the Kubernetes API server and kubectl, each started by its own name as
// the first argument (or by the name that the program was called under). One build of their shared packages takes half
// the time and a third of the space of three.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	name := filepath.Base(os.Args[0])
	if !component(name) {
		if len(os.Args) < 2 || !component(os.Args[1]) {
			fmt.Fprintln(os.Stderr, "usage: control-plane etcd|kube-apiserver|kubectl [flags]")
			os.Exit(2)
		}
		name = os.Args[1]
		// Each component parses os.Args itself.
		os.Args = os.Args[1:]
	}
	switch name {
	case "etcd":
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "kubectl":
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			os.Exit(1)
		}
	}
}

func component(name string) bool {
	return name == "etcd" || name == "kube-apiserver" || name == "kubectl"
}
