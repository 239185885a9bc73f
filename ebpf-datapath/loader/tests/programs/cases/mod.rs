//! Packets in, verdicts and packets out, told by hand. Each case names its verdict; the model adds the octets, counters and flows.

pub(crate) mod bypass;
pub(crate) mod encapsulated;
pub(crate) mod inner;
pub(crate) mod plain;
pub(crate) mod pods;
pub(crate) mod probes;
pub(crate) mod refused;
pub(crate) mod tagged;

use crate::machine::{Hook, Machine};
use crate::model::{Node, Verdict};
use crate::story::{self, Devices};

/// How many failed cases are told in full.
const SHOWN: usize = 8;

/// Cases for one hook of one node.
pub(crate) struct Table {
    machine: Machine,
    pub(crate) devices: Devices,
    hook: Hook,
    interface: u32,
    cases: usize,
    failed: Vec<String>,
}

impl Table {
    /// For the usual node.
    pub(crate) fn new(hook: Hook) -> Self {
        Self::of(hook, |_| ())
    }

    /// For a node that is the usual one but for this.
    pub(crate) fn of(hook: Hook, change: impl FnOnce(&mut Node)) -> Self {
        let devices = story::devices();
        let mut node = story::node(devices);
        change(&mut node);
        Self {
            machine: Machine::new(node),
            devices,
            hook,
            interface: match hook {
                Hook::UnderlayIngress | Hook::UnderlayEgress => devices.underlay,
                Hook::PodIngress | Hook::PodEgress => devices.pod,
            },
            cases: 0,
            failed: Vec::new(),
        }
    }

    /// The next cases are for this hook.
    pub(crate) fn at(&mut self, hook: Hook, interface: u32) -> &mut Self {
        self.hook = hook;
        self.interface = interface;
        self
    }

    /// The programs and the model.
    pub(crate) fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Changes the settings from here on.
    pub(crate) fn settings(&mut self, change: impl FnOnce(&mut podlane_datapath_common::Settings)) {
        change(&mut self.machine.model.settings);
        self.machine.write_settings();
    }

    /// One case.
    pub(crate) fn case(&mut self, name: &str, frame: &[u8], verdict: Verdict) {
        self.gso_case(name, frame, 0, verdict);
    }

    /// One case of a GSO packet.
    pub(crate) fn gso_case(&mut self, name: &str, frame: &[u8], gso_size: u32, verdict: Verdict) {
        self.cases += 1;
        let result = self.machine.both(self.hook, frame, self.interface, gso_size);
        match result {
            Ok(agreed) if agreed == verdict => {}
            Ok(agreed) => self
                .failed
                .push(format!("{name}: both say {agreed:?}, wanted {verdict:?}")),
            Err(report) => self.failed.push(format!("{name} (wanted {verdict:?}): {report}")),
        }
    }

    /// One condition.
    pub(crate) fn holds(&mut self, name: &str, holds: bool) {
        self.cases += 1;
        if !holds {
            self.failed.push(format!("{name}: does not hold"));
        }
    }

    /// Fails if any case did; says how many there were.
    pub(crate) fn end(self) {
        assert!(
            self.failed.is_empty(),
            "{} of {} cases:\n{}",
            self.failed.len(),
            self.cases,
            self.failed[..self.failed.len().min(SHOWN)].join("\n")
        );
        assert!(self.cases > 0);
        tell(&format!("{} cases", self.cases));
    }
}

/// Says something that is worth reading in the test's log.
#[expect(clippy::print_stderr, reason = "figures are to be seen in the log")]
pub(crate) fn tell(words: &str) {
    eprintln!("    {words}");
}
