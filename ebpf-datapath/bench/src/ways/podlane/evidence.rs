//! Whether the programs carried what was carried, and not the layer below them.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use podlane_datapath::{LaneCount, Reason};

/// Of so many packets at most one may have gone by the kernel's driver: what the kernel itself sends on a device that comes up.
const DRIVER: u64 = 20;

/// Of so many packets one at least bypasses the stack: short connections are mostly packets that open and close, which never do.
const BYPASSING: u64 = 5;

/// What a node's programs and the driver have counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The node's namespace.
    pub(super) node: String,
    /// What the programs counted on the lane.
    pub(super) lane: LaneCount,
    /// What they dropped on any lane.
    pub(super) dropped: BTreeMap<Reason, u64>,
    /// What the driver below carried.
    pub(super) driver: Driver,
}

/// Packets that the kernel's driver of the tunnel has carried.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Driver {
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// Fails where the lane's packets were not the programs', or bypassed the stack though they should not, or did not though they should.
pub(super) fn judge(seen: &Seen, bypass: bool) -> Result<()> {
    let (node, lane) = (&seen.node, &seen.lane);
    ensure!(
        seen.dropped.is_empty(),
        "{node}: the programs dropped {:?}",
        seen.dropped
    );
    for (what, packets, bypassing, driver) in [
        ("sent", lane.sent_packets, lane.sent_bypassing, seen.driver.sent),
        (
            "received",
            lane.received_packets,
            lane.received_bypassing,
            seen.driver.received,
        ),
    ] {
        ensure!(packets > 0, "{node}: the programs {what} no packet");
        ensure!(
            driver * DRIVER <= packets,
            "{node}: the kernel's driver {what} {driver} packets, the programs {packets}"
        );
        if bypass {
            ensure!(
                bypassing * BYPASSING >= packets,
                "{node}: of {packets} packets {what} only {bypassing} bypassed the stack"
            );
        } else {
            ensure!(
                bypassing == 0,
                "{node}: {bypassing} packets {what} bypassed the stack though that is off"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(packets: u64, bypassing: u64, driver: u64) -> Seen {
        Seen {
            lane: LaneCount {
                sent_packets: packets,
                received_packets: packets,
                sent_bypassing: bypassing,
                received_bypassing: bypassing,
                ..LaneCount::default()
            },
            driver: Driver {
                sent: driver,
                received: driver,
            },
            ..Seen::default()
        }
    }

    #[test]
    fn a_fall_back_to_the_layer_below_is_seen() {
        assert!(judge(&seen(100, 0, 0), false).is_ok());
        assert!(judge(&seen(100, 0, 5), false).is_ok());
        assert!(judge(&seen(100, 0, 6), false).is_err(), "the driver");
        assert!(judge(&seen(0, 0, 0), false).is_err(), "nobody");
        assert!(judge(&seen(100, 99, 0), true).is_ok());
        assert!(judge(&seen(100, 19, 0), true).is_err(), "the stack");
        assert!(
            judge(&seen(100, 1, 0), false).is_err(),
            "layer 3 in place of layer 2"
        );
    }

    #[test]
    fn drops_are_no_figures() {
        let mut dropping = seen(100, 0, 0);
        dropping.dropped.insert(Reason::ForgedInner, 1);
        assert!(judge(&dropping, false).is_err());
    }
}
