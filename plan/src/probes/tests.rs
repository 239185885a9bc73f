//! Probers on networks that lose what they are told to lose.

use super::*;
use crate::lane::{Tunnel, TunnelProtocol};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

const VXLAN: Lane = Lane::Tunnel(Tunnel {
    protocol: TunnelProtocol::Vxlan,
    port: 8472,
    vni: 1,
});

const ROUND_TRIP: Duration = Duration::from_micros(300);

fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn target(lane: Lane, in_use: bool) -> Target {
    let outer = lane.tunnel().map(|_| {
        let own = Ipv4Addr::new(192, 168, 10, 100).into();
        (own, Ipv4Addr::new(192, 168, 20, 100).into())
    });
    Target {
        lane,
        in_use,
        key: ProbeKey([7; 16]),
        source: Ipv4Addr::new(172, 20, 0, 1).into(),
        destination: Ipv4Addr::new(172, 20, 2, 1).into(),
        length: 1450,
        outer,
        device: "eth1".into(),
        next_hop: Ipv4Addr::new(192, 168, 10, 200).into(),
    }
}

/// What becomes of a packet of a peer's lane with this length: there (true) or back.
type Fate = fn(&Site, &str, Lane, u32, bool) -> bool;

/// A node's prober and its network.
struct Site {
    prober: Prober,
    now: Duration,
    targets: BTreeMap<String, Vec<Target>>,
    arrives: Fate,
    sent: Vec<(Duration, Probe)>,
    /// Answers on their way.
    answers: Vec<(Duration, Answer)>,
    /// When each change of doubt became known.
    news: Vec<(Duration, String, Option<&'static str>)>,
}

fn everything(_: &Site, _: &str, _: Lane, _: u32, _: bool) -> bool {
    true
}

fn nothing(_: &Site, _: &str, _: Lane, _: u32, _: bool) -> bool {
    false
}

impl Site {
    fn new(peers: usize, targets: &[Target], arrives: Fate) -> Self {
        let targets = (0..peers).map(|number| (format!("node-{number:04}"), targets.to_vec()));
        let mut site = Self {
            prober: Prober::new(42),
            now: at(1_000_000),
            targets: targets.collect(),
            arrives,
            sent: Vec::new(),
            answers: Vec::new(),
            news: Vec::new(),
        };
        site.aim();
        site
    }

    fn aim(&mut self) {
        let targets = self
            .targets
            .iter()
            .map(|(peer, targets)| (peer.as_str(), targets.as_slice()));
        self.prober.aim("node-0030", targets, self.now);
    }

    fn doubt(&self, peer: &str, lane: Lane) -> Option<&'static str> {
        self.prober.proofs().doubt(peer, lane).map(Doubt::reason)
    }

    /// What a doubt is said to be.
    fn told(&self, peer: &str, lane: Lane) -> String {
        let why = self.prober.proofs().doubt(peer, lane).expect("a doubt");
        crate::pair::Refusal::NotProved { lane, why }.to_string()
    }

    fn proved(&self) -> usize {
        let standings = self.prober.proofs().standings();
        standings
            .filter(|(_, _, standing)| *standing == Standing::Proved)
            .count()
    }

    /// Lets time pass, as a shell would that does what it is told.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.prober.next_due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            let now = self.now;
            let looked_for = self.prober.waiting_for(now);
            let (arrived, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.answers)
                .into_iter()
                .partition(|(when, answer)| *when <= now && looked_for.contains(&answer.id));
            self.answers = later;
            for (_, answer) in arrived {
                self.prober.answered(&answer, now);
            }
            for probe in self.prober.due(now) {
                self.send(probe);
            }
            if self.prober.take_news() && self.targets.len() < 4 {
                let standings = self.prober.proofs().standings();
                let told = standings.map(|(peer, lane, _)| (now, peer.to_owned(), self.doubt(peer, lane)));
                let told: Vec<_> = told.collect();
                self.news.extend(told);
            }
            // A shell that is woken at the very same time again would spin.
            self.now += Duration::from_micros(10);
        }
        self.now = end;
    }

    fn send(&mut self, probe: Probe) {
        let lane = probe.target.lane;
        let back = match probe.kind {
            Kind::Full | Kind::Between(_) => probe.length(),
            Kind::Small | Kind::There => SMALL,
        };
        let arrives = self.arrives;
        if arrives(self, &probe.peer, lane, probe.length(), true)
            && arrives(self, &probe.peer, lane, back, false)
        {
            let answer = Answer {
                id: probe.id,
                round_trip: ROUND_TRIP,
                length: back,
                lane,
            };
            self.answers.push((self.now + ROUND_TRIP, answer));
        }
        self.sent.push((self.now, probe));
    }
}

#[test]
fn a_lane_to_come_is_proved_by_one_packet_and_at_once() {
    let mut site = Site::new(1, &[target(Lane::Native, true), target(VXLAN, false)], everything);
    assert_eq!(site.doubt("node-0000", VXLAN), Some("LaneNotProved"));
    site.pass(at(5));
    assert_eq!(site.doubt("node-0000", VXLAN), None);
    assert_eq!(
        site.sent
            .iter()
            .filter(|(_, probe)| probe.target.lane == VXLAN)
            .count(),
        1
    );
    // It is kept when the lane comes into use, and lost when its way is another.
    site.targets
        .insert("node-0000".to_owned(), vec![target(VXLAN, true)]);
    site.aim();
    assert_eq!(site.doubt("node-0000", VXLAN), None);
    let elsewhere = Target {
        length: 1400,
        ..target(VXLAN, false)
    };
    site.targets.insert("node-0000".to_owned(), vec![elsewhere]);
    site.aim();
    assert_eq!(site.doubt("node-0000", VXLAN), Some("LaneNotProved"));
    // What comes to the earlier question is no answer to this one.
    site.pass(at(5));
    assert_eq!(site.doubt("node-0000", VXLAN), None);
    site.targets.clear();
    site.aim();
    site.pass(at(60_000));
    assert_eq!((site.proved(), site.prober.next_due()), (0, None));
    assert_eq!(site.prober.waiting_for(site.now).len(), 0);
}

#[test]
fn five_thousand_peers_are_proved_within_three_seconds() {
    let mut site = Site::new(5_000, &[target(VXLAN, false)], everything);
    site.pass(at(3_000));
    assert_eq!(site.proved(), 5_000);
    let sent = site.sent.len();
    assert!(sent < 5_000 + 5_000, "{sent}");
    rate_is_kept(&site);
    // They are in use now: a bounded number is asked in a second, and all in turn.
    for targets in site.targets.values_mut() {
        targets[0].in_use = true;
    }
    site.aim();
    site.pass(at(6_000));
    let (before, since) = (site.sent.len(), site.now);
    site.pass(at(400_000));
    let mut asked: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, probe) in &site.sent[before..] {
        *asked.entry(&probe.peer).or_default() += 1;
    }
    assert_eq!(asked.len(), 5_000);
    let a_second = (site.sent.len() - before) as u64 / (site.now - since).as_secs();
    assert!((100..130).contains(&a_second), "{a_second}");
    asked.retain(|_, count| *count > 400);
    let ends = asked.first_key_value().zip(asked.last_key_value());
    let ends = ends.map(|((first, _), (last, _))| (*first, *last));
    assert_eq!((asked.len(), ends), (64, Some(("node-0030", "node-0093"))));
}

fn rate_is_kept(site: &Site) {
    let mut first = 0;
    for (place, (when, _)) in site.sent.iter().enumerate() {
        while site.sent[first].0 + at(1_000) <= *when {
            first += 1;
        }
        assert!(
            place - first <= A_SECOND as usize * 11 / 10 + 3,
            "{} in a second",
            place - first
        );
    }
}

#[test]
fn thousands_that_do_not_answer_keep_no_other_from_being_watched() {
    let mut site = Site::new(
        5_000,
        &[target(Lane::Native, true), target(VXLAN, false)],
        |_, _, lane, _, _| lane == Lane::Native,
    );
    site.pass(at(20_000));
    rate_is_kept(&site);
    assert_eq!(site.doubt("node-0031", VXLAN), Some("LaneSilent"));
    site.arrives = |site, peer, _, _, _| peer != "node-0040" || site.now < at(1_020_000);
    site.pass(at(3_000));
    assert_eq!(site.doubt("node-0040", Lane::Native), Some("LaneSilent"));
    assert_eq!(site.doubt("node-0041", Lane::Native), None);
}

#[test]
fn a_lane_that_stops_answering_is_known_within_three_seconds_whenever_it_does() {
    for offset in 0..60 {
        let mut site = Site::new(3, &[target(VXLAN, true)], everything);
        site.pass(at(10_000 + offset * 37));
        assert!(
            site.news.iter().all(|(_, _, doubt)| doubt.is_none()),
            "{:?}",
            site.news
        );
        let stopped = site.now;
        site.arrives = |_, peer, _, _, _| peer != "node-0001";
        site.pass(at(4_000));
        let (known, _, doubt) = site
            .news
            .iter()
            .find(|(_, _, doubt)| doubt.is_some())
            .expect("it is known");
        assert_eq!(*doubt, Some("LaneSilent"));
        assert!(*known <= stopped + at(2_700), "{:?}", *known - stopped);
        // And it comes back as fast.
        site.arrives = everything;
        let back = site.now;
        site.news.clear();
        site.pass(at(5_000));
        let (known, _, _) = site.news.first().expect("it is known");
        assert!(*known <= back + at(3_000), "{:?}", *known - back);
        assert_eq!(site.doubt("node-0001", VXLAN), None);
        assert_eq!(site.doubt("node-0000", VXLAN), None);
    }
}

#[test]
fn a_network_that_carries_less_is_known_with_its_direction_within_three_seconds() {
    for (arrives, words) in [
        (
            (|_, _, _, length, there| !there || length <= 1300) as Fate,
            "1500 bytes from this node to it",
        ),
        (
            |_, _, _, length, there| there || length <= 1300,
            "1500 bytes from it to this node",
        ),
    ] {
        for (in_use, offset) in [(true, 0), (true, 210), (true, 433), (true, 900), (false, 0)] {
            let mut site = Site::new(
                2,
                &[target(VXLAN, in_use)],
                if in_use { everything } else { nothing },
            );
            site.pass(at(if in_use { 8_000 + offset } else { 10 }));
            site.arrives = arrives;
            let since = site.now;
            site.pass(at(4_000));
            let known = site
                .news
                .iter()
                .find(|(_, _, doubt)| *doubt == Some("LaneTooSmall"));
            let known = known.expect("it is known").0 - since;
            assert!(known <= at(3_000), "{known:?}");
            let told = site.told("node-0001", VXLAN);
            assert!(told.contains(words), "{told}");
            // And some seconds later what to do about it.
            site.pass(at(if in_use { 8_000 } else { 24_000 }));
            let told = site.told("node-0001", VXLAN);
            assert!(told.contains("Lower spec.mtu (now 1450) to 1300"), "{told}");
            site.arrives = everything;
            site.pass(at(5_000));
            assert_eq!(site.doubt("node-0001", VXLAN), None);
        }
    }
}

#[test]
fn lost_probes_here_and_there_change_nothing() {
    // Two of three are never lost in a row on one lane.
    let mut site = Site::new(3, &[target(VXLAN, true)], everything);
    assert!(!site.prober.has_heard_of_all());
    site.pass(at(3_000));
    assert!(site.prober.has_heard_of_all());
    site.arrives = |site, _, _, _, there| !there || site.sent.len() % 3 != 0;
    site.pass(at(120_000));
    assert!(
        site.news.iter().all(|(_, _, doubt)| doubt.is_none()),
        "{:?}",
        site.news
    );
    let tally = site.prober.tally();
    assert_eq!((tally.answering, tally.silent), (3, 0));
    assert!(
        tally.worst_loss > 0 && tally.worst_round_trip == ROUND_TRIP,
        "{tally:?}"
    );
}

#[test]
fn a_network_that_loses_a_tenth_at_random_is_hardly_ever_doubted() {
    let mut site = Site::new(3, &[target(VXLAN, true)], everything);
    site.pass(at(3_000));
    site.arrives = |site, _, _, _, there| {
        let drawn = (site.sent.len() as u64 * 2 + u64::from(there)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (drawn ^ drawn >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 32 & 0xff >= 13
    };
    site.pass(at(1_000_000));
    let losses = site.prober.tally().worst_loss;
    assert!((1..30).contains(&losses), "{losses}");
    let doubts = site.news.iter().filter(|(_, _, doubt)| doubt.is_some()).count();
    assert!(doubts <= 3, "{:?}", site.news);
}

#[test]
fn what_answers_elsewhere_is_not_down_and_a_missing_neighbour_is_named() {
    let mut site = Site::new(
        1,
        &[target(Lane::Native, true), target(VXLAN, false)],
        |_, _, lane, _, _| lane == Lane::Native,
    );
    site.pass(at(3_000));
    assert_eq!(
        site.prober.proofs().doubt("node-0000", VXLAN),
        Some(Doubt::Silent {
            answers_on: Some(Lane::Native)
        })
    );
    assert_eq!(
        doubt_where_unsent(|_| Some(Unsent::NoNeighbour)),
        Some(Doubt::NoNeighbour)
    );
}

/// What is thought of the lane to a peer that answers nothing, after three seconds in which probes were not sent for these reasons.
fn doubt_where_unsent(why: impl Fn(Kind) -> Option<Unsent>) -> Option<Doubt> {
    let mut prober = Prober::new(1);
    let targets = [target(Lane::Native, true)];
    prober.aim("me", [("peer", targets.as_slice())], at(0));
    let mut now = at(0);
    while now < at(3_000) {
        now = prober.next_due().expect("more is due").max(now + at(1));
        for probe in prober.due(now) {
            if let Some(why) = why(probe.kind) {
                prober.unsent(probe.id, why);
            }
        }
    }
    assert!(!prober.take_forgotten().is_empty() || prober.waiting_for(now).len() < 40);
    prober.proofs().doubt("peer", Lane::Native)
}

#[test]
fn probes_that_the_kernel_does_not_send_are_nobodys_filter() {
    let code = 5;
    assert_eq!(
        doubt_where_unsent(|_| Some(Unsent::Refused(code))),
        Some(Doubt::NotSent { code })
    );
    // The device is too small for full-size ones, and the small ones are not answered.
    assert_eq!(
        doubt_where_unsent(|kind| (kind != Kind::Small).then_some(Unsent::TOO_LONG)),
        Some(Doubt::Silent { answers_on: None })
    );
}

#[test]
fn an_answer_that_is_late_cut_or_on_another_lane_counts_for_what_it_is() {
    let targets = [target(VXLAN, false)];
    let mut prober = Prober::new(1);
    prober.aim("me", [("peer", targets.as_slice())], at(0));
    let first = prober.due(at(0)).remove(0);
    let answer = |id, length, lane| Answer {
        id,
        round_trip: at(1),
        length,
        lane,
    };
    prober.answered(&answer(first.id + 1, 1450, VXLAN), at(1));
    prober.answered(&answer(first.id, 1450, Lane::Native), at(1));
    prober.answered(&answer(first.id, 1449, VXLAN), at(1));
    assert_eq!(prober.proofs().doubt("peer", VXLAN), Some(Doubt::Untried));
    prober.answered(&answer(first.id, 1450, VXLAN), at(1));
    assert_eq!(
        prober.proofs().doubt("peer", VXLAN),
        Some(Doubt::Untried),
        "it was answered"
    );
    let second = prober.due(at(50));
    let full = second
        .iter()
        .find(|probe| probe.kind == Kind::Full)
        .expect("it is asked");
    prober.due(at(1_000));
    prober.answered(&answer(full.id, 1450, VXLAN), at(1_001));
    assert_eq!(prober.proofs().doubt("peer", VXLAN), None);
}

#[test]
fn where_programs_are_missing_no_lane_is_doubted() {
    assert_eq!(Proofs::default().doubt("peer", VXLAN), None);
    assert_eq!(Proofs::none_yet().doubt("peer", VXLAN), Some(Doubt::Untried));
}
