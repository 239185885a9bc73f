//! The programs and the model on packets drawn at random: the same verdict, octets, flows and counters for each.
//!
//! `PODLANE_FUZZ_SEED` and `PODLANE_FUZZ_PACKETS` give another seed and number than CI's.

use crate::cases::bypass::{received, sent, tuple};
use crate::cases::tell;
use crate::compare::{differences, report, tuples};
use crate::machine::{Hook, Machine, is_taken};
use crate::model::probe_tag;
use crate::packet::{ACK, form, tcp, udp};
use crate::random::{
    PEERS, Random, between_pods, from_a_pod, in_some_tunnel, mutate, noise, pod_of, some_probe, some_slot,
};
use crate::story::{self, Devices, GENERATION, ON_LINK};
use podlane_datapath_common::probe::{LENGTH, ProbeState, REPLY};
use podlane_datapath_common::settings_flag;
use podlane_test_namespaces::{Test, in_fresh};
use std::collections::BTreeMap;
use std::time::Instant;

pub(crate) const TESTS: &[Test] = &[("programs_do_what_the_model_does", programs_do_what_the_model_does)];

const SEED: u64 = 20_261_123;
const PACKETS: u64 = 1_000_000;
/// Packets after which counters are compared.
const BATCH: u64 = 512;
/// Batches after which all is set up anew, with other settings.
const BATCHES: u64 = 32;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| {
        text.parse()
            .unwrap_or_else(|error| panic!("{variable}={text}: {error}"))
    })
}

struct Drawn {
    hook: Hook,
    interface: u32,
    frame: Vec<u8>,
    gso_size: u32,
}

/// On both of a small machine's processors: each half is a run of its own, with a seed of its own.
fn programs_do_what_the_model_does() {
    let seed = number("PODLANE_FUZZ_SEED", SEED);
    let packets = number("PODLANE_FUZZ_PACKETS", PACKETS);
    let half = packets.div_ceil(2);
    std::thread::scope(|scope| {
        let halves = [(seed, half), (seed + 1, packets - half)]
            .map(|(seed, packets)| scope.spawn(move || in_fresh(move || run(seed, packets))));
        for half in halves {
            let result = half.join().expect("what panics is told");
            result.unwrap_or_else(|reason| panic!("{reason}"));
        }
    });
}

fn run(seed: u64, packets: u64) {
    tell(&format!(
        "PODLANE_FUZZ_SEED={seed} PODLANE_FUZZ_PACKETS={packets}"
    ));
    let mut random = Random::of(seed);
    let devices = story::devices();
    let mut machine = Machine::new(story::node(devices));
    let begun = Instant::now();
    let mut verdicts: BTreeMap<String, u64> = BTreeMap::new();
    let mut done = 0;
    while done < packets {
        if done % (BATCH * BATCHES) == 0 {
            set_up(&mut random, &mut machine, devices);
        }
        machine.ask_time();
        let size = BATCH.min(packets - done);
        let batch: Vec<Drawn> = (0..size).map(|_| draw(&mut random, devices)).collect();
        let before = machine.model.clone();
        for (place, drawn) in batch.iter().enumerate() {
            let verdict = one(&mut machine, drawn)
                .unwrap_or_else(|report| panic!("packet {} of seed {seed}: {report}", done + place as u64));
            *verdicts
                .entry(format!("{} {verdict}", drawn.hook.program()))
                .or_default() += 1;
        }
        let mut found = machine.counter_differences();
        found.extend(machine.probe_differences());
        if !found.is_empty() {
            let culprit = culprit(&mut machine, &before, &batch);
            panic!(
                "seed {seed}, packets {done} to {}: {}\n{culprit}",
                done + size,
                found.join("\n")
            );
        }
        done += size;
    }
    for (verdict, count) in verdicts {
        tell(&format!("{count:>8} {verdict}"));
    }
    tell(&format!("{done} packets in {:.1?}", begun.elapsed()));
}

/// Runs both on a packet.
fn one(machine: &mut Machine, drawn: &Drawn) -> Result<String, String> {
    let Drawn {
        hook,
        interface,
        frame,
        gso_size,
    } = drawn;
    let expected = machine.expect(*hook, frame, *interface, *gso_size);
    let ran = machine.run(*hook, frame, *interface, *gso_size);
    let mut found = differences(&expected, &ran);
    for tuple in tuples(frame) {
        found.extend(machine.flow_differences(&tuple));
    }
    if found.is_empty() {
        Ok(format!("{:?}", expected.verdict))
    } else {
        Err(report(
            *hook, *interface, frame, *gso_size, &expected, &ran, &found,
        ))
    }
}

/// The packet of a batch after which counters differ, found by running it once more.
fn culprit(machine: &mut Machine, before: &crate::model::Node, batch: &[Drawn]) -> String {
    for known in machine.model.flows.clone().keys() {
        machine.forget_flow(known);
    }
    for (known, state) in &before.flows {
        machine.set_flow(*known, *state);
    }
    for drawn in batch {
        let differs = one(machine, drawn).err();
        let counters = machine.counter_differences();
        if let Some(report) = differs {
            return report;
        }
        if !counters.is_empty() {
            let expected = machine.expect(drawn.hook, &drawn.frame, drawn.interface, drawn.gso_size);
            let ran = machine.run(drawn.hook, &drawn.frame, drawn.interface, drawn.gso_size);
            return report(
                drawn.hook,
                drawn.interface,
                &drawn.frame,
                drawn.gso_size,
                &expected,
                &ran,
                &counters,
            );
        }
    }
    "the second time they do not".to_owned()
}

/// Other settings, and no flow but some stamped ones.
fn set_up(random: &mut Random, machine: &mut Machine, devices: Devices) {
    let settings = &mut machine.model.settings;
    let always = settings_flag::PROBES | settings_flag::CHECK_UNDERLAY;
    let may = [
        settings_flag::BYPASS,
        settings_flag::NATIVE,
        settings_flag::ENTER_BY_TUNNEL,
        settings_flag::MORE_LOCAL,
        story::decap_flags(),
    ];
    settings.flags = may.iter().fold(always, |flags, flag| {
        let usual = *flag == settings_flag::BYPASS || *flag == settings_flag::NATIVE;
        let there = if usual {
            !random.once_in(6)
        } else {
            random.once_in(2)
        };
        flags | if there { *flag } else { 0 }
    });
    settings.traffic_class = u32::from(random.octet() & 0xfc);
    machine.write_settings();
    for known in machine.model.flows.clone().keys() {
        machine.forget_flow(known);
    }
    for number in 0..16_u64 {
        let reply_tag = u64::from_ne_bytes(probe_tag(&[1, 2], &form(REPLY, 0, number, LENGTH as u16)));
        machine.model.probes.insert(
            number,
            ProbeState {
                reply_tag,
                sent: 1,
                ..ProbeState::default()
            },
        );
    }
    machine.write();
    let now = machine.ask_time();
    for _ in 0..600 {
        let peer = random.below(4);
        let six = random.once_in(2);
        // The node on the link has one tunnel open.
        let slot = if PEERS[peer] == ON_LINK {
            0
        } else {
            some_slot(random)
        };
        let (there, here) = (
            pod_of(random, peer, six).to_string(),
            stamped_pod(random, six).to_owned(),
        );
        let outward = random.once_in(2);
        let (from, to) = if outward { (&here, &there) } else { (&there, &here) };
        let packet = if random.once_in(2) {
            udp(from, to)
        } else {
            tcp(from, to, ACK)
        };
        let pod = if here.ends_with(['1', 'b']) {
            devices.other_pod
        } else {
            devices.pod
        };
        let mut flow = if outward {
            sent(&machine.model, now, pod, PEERS[peer], slot)
        } else {
            received(&machine.model, now, pod, PEERS[peer], slot)
        };
        match random.below(8) {
            0 => flow.stamped = now.wrapping_sub(0x6000_0000),
            1 => flow.generation = GENERATION - 1,
            2 => flow.mtu = 100,
            _ => {}
        }
        machine.set_flow(tuple(&packet), flow);
    }
}

/// A pod that has a device; only such flows are ever stamped.
fn stamped_pod(random: &mut Random, six: bool) -> &'static str {
    random.one_of(&if six {
        ["fd20::a", "fd20::b"]
    } else {
        ["172.20.0.10", "172.20.0.11"]
    })
}

/// A packet and where it comes along.
fn draw(random: &mut Random, devices: Devices) -> Drawn {
    let (hook, mut frame) = match random.below(16) {
        0..7 => (Hook::UnderlayIngress, in_some_tunnel(random)),
        7 => (Hook::UnderlayIngress, between_pods(random)),
        8..11 => (Hook::PodIngress, from_a_pod(random)),
        11 => (Hook::UnderlayIngress, some_probe(random)),
        12 => (Hook::PodEgress, between_pods(random)),
        13 => (Hook::UnderlayEgress, between_pods(random)),
        14 => (random.one_of(&Hook::ALL), noise(random)),
        _ => (random.one_of(&Hook::ALL), in_some_tunnel(random)),
    };
    if random.once_in(2) {
        for _ in 0..1 + random.below(3) {
            mutate(random, &mut frame);
        }
    }
    if !is_taken(&frame) {
        frame.resize(54, 0x45);
    }
    let interface = match hook {
        Hook::UnderlayIngress | Hook::UnderlayEgress => devices.underlay,
        // The device of the pod from or to which it is, as often as not.
        Hook::PodIngress if frame.get(29) == Some(&11) || frame.get(37) == Some(&11) => devices.other_pod,
        Hook::PodIngress | Hook::PodEgress => random.one_of(&[devices.pod, devices.pod, devices.other_pod]),
    };
    let gso_size = if random.once_in(40) {
        100 + random.below(1400) as u32
    } else {
        0
    };
    Drawn {
        hook,
        interface,
        frame,
        gso_size,
    }
}
