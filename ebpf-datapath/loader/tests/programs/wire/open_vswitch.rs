//! Open vSwitch as the other end: its userspace datapath, which shares no code with the kernel's drivers.

use super::Wire;
use super::other_end::{by_family, pod};
use super::traffic::{STREAM, datagrams, stream};
use crate::cases::tell;
use podlane_datapath_common::{REASONS, Reason};
use podlane_test_namespaces::{Conditional, Elsewhere};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const TESTS: Conditional = Conditional {
    lacking,
    tests: &[("open_vswitch_is_the_other_end", open_vswitch_is_the_other_end)],
};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const PATIENCE: Duration = Duration::from_secs(60);

fn lacking() -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: &&str| {
        let places = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
        places
            .map(|place| place.join(program))
            .any(|place| place.is_file())
    };
    [
        "ovs-vswitchd",
        "ovsdb-server",
        "ovsdb-tool",
        "ovs-vsctl",
        "ovs-appctl",
    ]
    .iter()
    .find(|program| !found(program))
    .map(|program| format!("{program} is not installed (package openvswitch-switch)"))
}

/// A tunnel's other end: a bridge of its own, whose port is the far pod.
struct End {
    bridge: &'static str,
    /// As ovs-vsctl(8) names the protocol.
    protocol: &'static str,
    port: u16,
    vni: u32,
    /// The outer addresses: the peer's, this node's.
    outer: [&'static str; 2],
    /// The far pod's addresses, and their routers' there: IPv4, IPv6.
    pods: [&'static str; 2],
}

/// The slots that Open vSwitch can serve in one namespace: two protocols over both families.
const ENDS: [End; 4] = [
    End {
        bridge: "vxlan-v4",
        protocol: "vxlan",
        port: 8472,
        vni: 1,
        outer: ["192.168.20.100", "192.168.10.100"],
        pods: ["172.20.2.10", "fd20:0:0:2::a"],
    },
    End {
        bridge: "vxlan-v6",
        protocol: "vxlan",
        port: 8472,
        vni: 1,
        outer: ["fd00:20::100", "fd00:10::100"],
        pods: ["172.20.3.10", "fd20:0:0:3::a"],
    },
    End {
        bridge: "geneve-v4",
        protocol: "geneve",
        port: 6082,
        vni: 7,
        outer: ["192.168.20.103", "192.168.10.100"],
        pods: ["172.20.7.10", "fd20:0:0:4::a"],
    },
    End {
        bridge: "geneve-v6",
        protocol: "geneve",
        port: 6082,
        vni: 7,
        outer: ["fd00:20::100", "fd00:10::100"],
        pods: ["172.20.3.210", "fd20:0:0:3:8000::a"],
    },
];

/// This node's pod.
const HERE: [&str; 2] = ["172.20.0.10", "fd20::a"];

/// Open vSwitch at work in a namespace.
struct OpenVswitch {
    directory: PathBuf,
    daemons: Vec<Child>,
}

impl OpenVswitch {
    /// Starts it where the underlay's far end is, and makes that its own.
    fn start(far: &Elsewhere) -> Self {
        let directory = std::env::temp_dir().join(format!("podlane-ovs-{}", std::process::id()));
        // What an earlier run may have left, with this number.
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir(&directory).expect("a directory");
        let mut switch = Self {
            directory,
            daemons: Vec::new(),
        };
        let database = switch.file("conf.db");
        run(Command::new("ovsdb-tool")
            .arg("create")
            .arg(&database)
            .arg(SCHEMA));
        let socket = switch.file("db.sock");
        switch.daemon(
            far,
            "ovsdb-server",
            vec![format!("--remote=punix:{socket}"), database],
        );
        appears(Path::new(&socket));
        switch.daemon(far, "ovs-vswitchd", vec![format!("unix:{socket}")]);
        switch.set(&["--no-wait", "init"]);
        switch.set(&[
            "add-br",
            "underlay",
            "--",
            "set",
            "bridge",
            "underlay",
            "datapath_type=netdev",
            "other-config:hwaddr=02:00:00:00:00:02",
            "--",
            "add-port",
            "underlay",
            "eth0-end",
        ]);
        switch
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn daemon(&mut self, far: &Elsewhere, program: &'static str, arguments: Vec<String>) {
        let control = format!("--unixctl={}", self.file(&format!("{program}.ctl")));
        let log = format!("--log-file={}", self.file(&format!("{program}.log")));
        let directory = self.directory.clone();
        let daemon = far.run(move || {
            Command::new(program)
                .args([control, log, "--no-chdir".to_owned()])
                .args(arguments)
                .env("OVS_RUNDIR", &directory)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("{program}: {error}"))
        });
        self.daemons.push(daemon);
    }

    /// Runs ovs-vsctl(8), which returns when the switch has done it.
    fn set(&self, arguments: &[&str]) {
        let database = format!("--db=unix:{}", self.file("db.sock"));
        run(Command::new("ovs-vsctl")
            .args([&database, "--timeout=10"])
            .args(arguments));
    }

    /// Asks the switch itself.
    fn control(&self, arguments: &[&str]) -> String {
        let target = format!("--target={}", self.file("ovs-vswitchd.ctl"));
        run(Command::new("ovs-appctl").arg(target).args(arguments))
    }
}

impl Drop for OpenVswitch {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            // One that has ended by itself is no loss any more.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.file("ovs-vswitchd.log")).unwrap_or_default();
            tell(&format!("Open vSwitch's log:\n{log}"));
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn run(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn appears(path: &Path) {
    let end = Instant::now() + PATIENCE;
    while !path.exists() {
        assert!(Instant::now() < end, "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The pod, whose device does by itself what a sender's may leave to the next one: the switch reads single frames, with right checksums.
fn the_pod(wire: &Wire) {
    pod(wire);
    wire.pod
        .run(|| run(Command::new("ethtool").args(["-K", "pod1-end", "tx", "off"])));
}

/// The peers' addresses on the underlay, and the node as their neighbour.
fn the_underlay(wire: &Wire, switch: &OpenVswitch) {
    for line in [
        "link set underlay addrgenmode none up",
        "-6 addr flush dev underlay",
        "addr add 192.168.10.1/24 dev underlay",
        "addr add 192.168.20.100/32 dev underlay",
        "addr add 192.168.20.103/32 dev underlay",
        // Over IPv6 the switch takes its source from the device and by the longest prefix, whatever local_ip says: so there is one, which
        // covers the node's.
        "addr add fd00:20::100/16 dev underlay nodad",
    ] {
        wire.far.ip(line);
    }
    for node in ["192.168.10.100", "fd00:10::100"] {
        switch.control(&["tnl/neigh/set", "underlay", node, "02:00:00:00:00:01"]);
    }
}

/// A bridge with a tunnel's port, and one that is the far pod.
fn tunnel(wire: &Wire, switch: &OpenVswitch, end: &End) {
    let [there, here] = end.outer;
    let port = format!("{}-tunnel", end.bridge);
    let options = [
        format!("options:local_ip={there}"),
        format!("options:remote_ip={here}"),
        format!("options:key={}", end.vni),
        format!("options:dst_port={}", end.port),
    ];
    let kind = format!("type={}", end.protocol);
    let mut words = vec!["add-br", end.bridge, "--", "set", "bridge", end.bridge];
    words.extend(["datapath_type=netdev", "other-config:hwaddr=02:50:c0:a8:14:64"]);
    words.extend([
        "--",
        "add-port",
        end.bridge,
        &port,
        "--",
        "set",
        "interface",
        &port,
        &kind,
    ]);
    words.extend(options.iter().map(String::as_str));
    switch.set(&words);
    wire.far
        .ip(&format!("link set {} mtu 1430 addrgenmode none up", end.bridge));
    for (remote, local) in end.pods.into_iter().zip(HERE) {
        let (six, length, nodad) = by_family(remote);
        for line in [
            format!("addr add {remote}/{length} dev {} {nodad}", end.bridge),
            format!(
                "neigh replace {local} lladdr 02:50:c0:a8:0a:64 dev {} nud permanent",
                end.bridge
            ),
            format!("{six}route replace {local} dev {} src {remote}", end.bridge),
        ] {
            wire.far.ip(&line);
        }
    }
}

fn open_vswitch_is_the_other_end() {
    let mut wire = Wire::new();
    the_pod(&wire);
    let switch = OpenVswitch::start(&wire.far);
    the_underlay(&wire, &switch);
    for end in &ENDS {
        tunnel(&wire, &switch, end);
        for (there, here) in end.pods.into_iter().zip(HERE) {
            let words = format!("{there} by {}", end.bridge);
            let (there, here): (IpAddr, IpAddr) = (there.parse().expect("one"), here.parse().expect("one"));
            let (far, pod) = ((&wire.far, there), (&wire.pod, here));
            for length in [1, 1300, 4000] {
                let back = datagrams(far, pod, length, 50);
                assert_eq!(back, 50, "{words}: datagrams of {length} octets asked by the pod");
                let back = datagrams(pod, far, length, 50);
                assert_eq!(back, 50, "{words}: datagrams of {length} octets asked of the pod");
            }
            assert_eq!(stream(far, pod), [STREAM; 2], "{words}");
        }
        // The next end's pod is this node's only neighbour there.
        switch.set(&["del-br", end.bridge]);
    }
    let lanes = wire.machine.lanes();
    for slot in [0, 2] {
        let lane = lanes[slot];
        assert!(
            lane.received_packets > lane.received_bypassing && lane.received_bypassing > 0,
            "{lane:?}"
        );
        assert!(
            lane.sent_packets > lane.sent_bypassing && lane.sent_bypassing > 0,
            "{lane:?}"
        );
    }
    for (slot, lane) in lanes.iter().enumerate() {
        let mut dropped = lane.dropped;
        // The far devices' own listener reports (RFC 3810) come from no pod.
        dropped[Reason::ForgedInner as usize] = 0;
        assert_eq!(dropped, [0; REASONS], "slot {slot}");
    }
    tell(&format!("{:?}, {:?}", lanes[0], lanes[2]));
}
