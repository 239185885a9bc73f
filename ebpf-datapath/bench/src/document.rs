//! docs/performance.md, out of a run's record.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::condition::Condition;
use crate::figure::{Better, Figure, readable};
use crate::noise;
use crate::plan::{FEW, Setting};
use crate::record::{Compared, Run};
use crate::site::{Family, POD_MTU};
use crate::statistics::Spread;
use crate::ways::NATIVE;

/// Figures that stand in one table.
const TABLES: [&[Figure]; 3] = [
    &[
        Figure::Packets,
        Figure::RoundTripMedian,
        Figure::RoundTrip99,
        Figure::Connections,
    ],
    &[
        Figure::TcpOne,
        Figure::TcpFour,
        Figure::FramesOne,
        Figure::FramesFour,
    ],
    &[
        Figure::TcpOneCpu,
        Figure::TcpFourCpu,
        Figure::FramesFourCpu,
        Figure::ConnectionCpu,
    ],
];

/// A way that loses more than this (%) is named.
const WORTH_A_WORD: f64 = 0.1;

/// The document.
pub fn render(run: &Run) -> String {
    let mut text = String::new();
    opening(&mut text, run);
    goals(&mut text, run);
    for family in Family::ALL {
        for condition in Condition::ALL {
            let peers: BTreeSet<u16> = run.comparisons.iter().map(|it| it.way.peers).collect();
            for peers in peers {
                section(&mut text, run, family, condition, peers);
            }
        }
    }
    rules(&mut text, run);
    closing(&mut text, run);
    text
}

fn opening(text: &mut String, run: &Run) {
    let machine = &run.machine;
    let kind = if machine.virtual_machine {
        ", a virtual machine"
    } else {
        ""
    };
    let _ = write!(
        text,
        "# Performance\n\n\
         Written by `make bench-datapath` out of what it measured (target/bench-datapath.json); not to be changed by hand.\n\n\
         Two pods on two nodes in different subnets, joined by a router, each a network namespace of one machine, linked by veths. \
         Every figure is a ratio to plain kernel routing in the same condition: **median** (min–max) over {} pairs of samples \
         taken next to each other, A B B A. A sample during which other processes or the hypervisor took more than {:.0} % of one \
         processor's time is taken again. All pods have the same MTU, {POD_MTU}.\n\n\
         Machine: {} × {}{kind}, {} MiB, Linux {}. Samples of {} ms (packets, round trips, connections) and {} ms (TCP).\n",
        run.pairs_wanted,
        noise::LIMIT * 100.0,
        machine.processors,
        machine.processor,
        machine.memory_mib,
        machine.kernel,
        run.short_ms,
        run.long_ms,
    );
    text.push_str(if run.quick {
        "\n**A quick run** (`make bench-datapath BENCH=--quick`, then `bench-datapath render`): samples shorter than a whole run's, and not \
         every figure in every condition. What stands in no table was not measured.\n"
    } else if run.partial {
        ""
    } else {
        "\nA whole run: all figures, both families, 1 and 5,000 peers.\n"
    });
    for (is_so, words) in [
        (
            !machine.optimised,
            "**The benchmark was built without optimisation: these figures are of no use.**",
        ),
        (
            run.noise_accepted,
            "**Samples disturbed by other processes were kept: these figures are a first look only.**",
        ),
        (
            run.partial,
            "**This run left ways, conditions or measurements out on purpose.**",
        ),
    ] {
        if is_so {
            let _ = write!(text, "\n{words}\n");
        }
    }
    text.push_str("\n## The ways\n\n");
    for way in &run.ways {
        let _ = writeln!(text, "- **{}** (`{}`): {}.", way.title, way.name, way.description);
        if let Some(reason) = &way.impossible {
            let _ = writeln!(text, "  Not measured: {reason}.");
        }
    }
    text.push_str("\n## The conditions\n\n");
    for condition in Condition::ALL {
        let _ = writeln!(text, "- **{}**: {}.", condition.title(), condition.description());
    }
    text.push_str(
        "\n## What is measured\n\n\
         - **UDP 64 B**: packets of 64 bytes of payload that arrived, a second; one flow, sent as fast as it goes, every packet \
         numbered and counted at both ends.\n\
         - **Round trip**: one such packet to the other pod and back, both ends tied to one processor.\n\
         - **Connections**: TCP connections that were opened, carried 64 bytes each way and were closed, a second, of 10,000 \
         offered.\n\
         - **TCP**: streams in writes of 1 MB, cubic. Super-packets cross the veths between the nodes whole.\n\
         - **MTU frames**: the same with TSO and GSO off between the nodes and GRO on at them, so that no frame there is longer \
         than the MTU (checked by counting).\n\
         - **CPU**: processor time of the whole machine less that of other processes, for 10⁹ bytes or for one connection.\n\n\
         Higher is better for packets, connections and TCP; lower for round trips and CPU.\n",
    );
}

/// What ways are meant to reach, and what they reached.
fn goals(text: &mut String, run: &Run) {
    let mut rows = String::new();
    for way in &run.ways {
        for goal in &way.goals {
            for it in alike_few(run, goal.condition).filter(|it| it.way.way == way.name) {
                let Some(ratio) = it.figure(goal.figure).and_then(|record| record.ratio) else {
                    continue;
                };
                let (sign, reached) = match goal.figure.better() {
                    Better::Higher => ("≥", ratio.median >= goal.ratio),
                    Better::Lower => ("≤", ratio.median <= goal.ratio),
                };
                let _ = writeln!(
                    rows,
                    "| {} | {} | {}, {} | {sign} {:.2} | {:.2} ({:.2}–{:.2}) | {} |",
                    way.title,
                    goal.figure.title(),
                    it.family.title(),
                    goal.condition.title(),
                    goal.ratio,
                    ratio.median,
                    ratio.min,
                    ratio.max,
                    if reached { "yes" } else { "**no**" }
                );
            }
        }
    }
    if !rows.is_empty() {
        let _ = write!(
            text,
            "\n## What is wanted, and what was reached\n\n\
             | | figure | where | wanted | measured | reached |\n| --- | --- | --- | --- | --- | --- |\n{rows}"
        );
    }
}

/// The comparisons with another way in the same condition, in both families, among few peers.
fn alike_few(run: &Run, condition: Condition) -> impl Iterator<Item = &Compared> {
    Family::ALL
        .into_iter()
        .flat_map(move |family| alike(run, family, condition, FEW))
}

/// The comparisons with another way in the same condition.
fn alike(run: &Run, family: Family, condition: Condition, peers: u16) -> impl Iterator<Item = &Compared> {
    run.comparisons.iter().filter(move |it| {
        let same = |setting: &Setting| setting.condition == condition && setting.peers == peers;
        it.family == family && same(&it.way) && same(&it.baseline)
    })
}

fn section(text: &mut String, run: &Run, family: Family, condition: Condition, peers: u16) {
    let compared: Vec<&Compared> = alike(run, family, condition, peers).collect();
    if compared.is_empty() {
        return;
    }
    let crowd = if peers == FEW {
        String::new()
    } else {
        format!(", {}", among(peers))
    };
    let _ = write!(text, "\n## {}, {}{crowd}\n", family.title(), condition.title());
    for figures in TABLES {
        let present: Vec<Figure> = figures
            .iter()
            .copied()
            .filter(|figure| compared.iter().any(|it| it.figure(*figure).is_some()))
            .collect();
        if !present.is_empty() {
            table(text, run, &compared, &present);
        }
    }
    for it in compared {
        remarks(text, run, it);
    }
}

fn among(peers: u16) -> String {
    match peers {
        1 => "1 peer".to_owned(),
        more if more < 1000 => format!("{more} peers"),
        many => format!("{} peers", readable(many.into())),
    }
}

fn table(text: &mut String, run: &Run, compared: &[&Compared], figures: &[Figure]) {
    text.push('\n');
    head(text, "", figures);
    let absolute = figures.iter().map(|figure| {
        let values = compared
            .iter()
            .filter(|it| it.baseline.way == NATIVE)
            .filter_map(|it| it.figure(*figure))
            .flat_map(|record| record.pairs.iter().map(|(baseline, _)| *baseline));
        Spread::of(values).map_or_else(String::new, |it| {
            format!("{} {}", readable(it.median), figure.unit())
        })
    });
    row(text, "native routing, itself", absolute);
    for it in compared {
        let cells = figures.iter().map(|figure| cell(run, it, *figure));
        row(text, title(run, &it.way.way), cells);
    }
}

fn head(text: &mut String, first: &str, figures: &[Figure]) {
    let arrow = |figure: &Figure| match figure.better() {
        Better::Higher => "↑",
        Better::Lower => "↓",
    };
    let titles = figures
        .iter()
        .map(|figure| format!("{} {}", figure.title(), arrow(figure)));
    row(text, first, titles);
    row(text, "---", figures.iter().map(|_| "---".to_owned()));
}

fn row(text: &mut String, first: &str, cells: impl Iterator<Item = String>) {
    let _ = write!(text, "| {first} |");
    for cell in cells {
        let _ = write!(text, " {cell} |");
    }
    text.push('\n');
}

fn cell(run: &Run, compared: &Compared, figure: Figure) -> String {
    let Some(record) = compared.figure(figure) else {
        return "–".to_owned();
    };
    let Some(ratio) = record.ratio else {
        return "–".to_owned();
    };
    let fewer = if record.pairs.len() < run.pairs_wanted as usize {
        format!(", {} pairs", record.pairs.len())
    } else {
        String::new()
    };
    format!(
        "**{:.2}** ({:.2}–{:.2}{fewer})",
        ratio.median, ratio.min, ratio.max
    )
}

fn title<'run>(run: &'run Run, name: &'run str) -> &'run str {
    run.way(name).map_or(name, |way| &way.title)
}

/// What a reader of the ratios has to know besides.
fn remarks(text: &mut String, run: &Run, compared: &Compared) {
    if let Some(lost) = compared.figure(Figure::PacketsLost) {
        for (name, spread) in [
            (&compared.baseline.way, lost.baseline),
            (&compared.way.way, lost.way),
        ] {
            if spread.median > WORTH_A_WORD {
                let _ = write!(
                    text,
                    "\n{}: {:.1} % of the UDP packets sent did not arrive ({:.1}–{:.1}).\n",
                    title(run, name),
                    spread.median,
                    spread.min,
                    spread.max
                );
            }
        }
    }
    let given_up: u32 = compared.measured.iter().map(|measured| measured.given_up).sum();
    if given_up > 0 {
        let _ = write!(
            text,
            "\n{}: {given_up} pairs were given up, since others disturbed them again and again.\n",
            title(run, &compared.way.way)
        );
    }
}

/// What rules or many peers cost a way, compared with itself without.
fn rules(text: &mut String, run: &Run) {
    let own: Vec<&Compared> = run
        .comparisons
        .iter()
        .filter(|it| it.way.way == it.baseline.way && !it.measured.is_empty())
        .collect();
    if own.is_empty() {
        return;
    }
    text.push_str(
        "\n## What rules and many peers cost native routing\n\nRatios to native routing with one peer and without rules. Multiplied \
         with a ratio above, they compare a way under rules with native routing without.\n\n",
    );
    let figures = TABLES[0];
    head(text, "", figures);
    for it in own {
        let name = format!(
            "{}, {}, {}",
            it.family.title(),
            it.way.condition.title(),
            among(it.way.peers)
        );
        row(text, &name, figures.iter().map(|figure| cell(run, it, *figure)));
    }
}

fn closing(text: &mut String, run: &Run) {
    let _ = write!(
        text,
        "\n## What not to conclude\n\n\
         - These are the costs of handling packets in software. A real network card encapsulates, segments and checks in \
         hardware, with its own limits; none was here.\n\
         - Absolute figures belong to this machine and this hour. Only ratios of samples next to each other mean something, and a \
         ratio whose range crosses 1 shows no difference.\n\
         - Sender, router and receiver share {} processors: what is saved at one end is spent at the other. A network of real \
         machines is limited by the slowest of them.\n\
         - All pods have an MTU of {POD_MTU}. Native routing could have 1500, about 3 % more bytes a frame.\n\
         - “Flannel's way” and “Cilium's way” are the packet's path as those projects build it, set up by this benchmark; neither \
         project's program ran. What else they do for a packet (policy, connection tracking, Services, masquerade) is left out, \
         and would cost them more.\n\
         - One flow at a time in the packet figures: what many flows cost in caches is not shown.\n\
         - {} in the tables; packets go to one peer.\n\n\
         To measure again: `make bench-datapath`, as root, on a machine that does nothing else.\n",
        run.machine.processors,
        peers_told(run)
    );
}

/// How many peers stood in the nodes' tables.
fn peers_told(run: &Run) -> String {
    let numbers: BTreeSet<u16> = run.comparisons.iter().map(|it| it.way.peers).collect();
    let words: Vec<_> = numbers.into_iter().map(among).collect();
    match &words[..] {
        [one] => format!("{one} stands"),
        several => format!("{} stand", several.join(" and ")),
    }
}

#[cfg(test)]
mod tests;
