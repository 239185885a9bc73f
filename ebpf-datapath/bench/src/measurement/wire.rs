//! What the links between the nodes do with frames, and what went over them.

use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use podlane_e2e::netns::Namespace;

use crate::site::{ETH0, ROUTER_INTERFACES, Site, UNDERLAY_MTU};
use crate::ways::Wire;

/// Ethernet's header, which the MTU does not count.
const ETHERNET: u64 = 14;

/// Real frames: whoever sends on a link between the nodes cuts super-packets up first, and nodes put together what arrives, as a
/// network card's driver does. The router hands frames on as they are. Otherwise super-packets travel whole, as veths do.
pub(super) fn set_real_frames(site: &Site, real: bool) -> Result<()> {
    let (sending, receiving) = if real { ("off", "on") } else { ("on", "off") };
    let cuts = [
        "tso",
        sending,
        "gso",
        sending,
        "tx-udp_tnl-segmentation",
        sending,
        "tx-udp_tnl-csum-segmentation",
        sending,
    ];
    for interface in ROUTER_INTERFACES {
        ethtool(&site.router, interface, &cuts)?;
    }
    for node in &site.nodes {
        ethtool(&node.namespace, ETH0, &[&cuts[..], &["gro", receiving]].concat())?;
    }
    Ok(())
}

fn ethtool(namespace: &Namespace, interface: &str, features: &[&str]) -> Result<()> {
    let output = namespace
        .command("ethtool")
        .args(["-K", interface])
        .args(features)
        .stdin(Stdio::null())
        .output()
        .context("cannot run ethtool")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!(
            "in {}: ethtool -K {interface}: {}",
            namespace.name(),
            words.trim()
        );
    }
    Ok(())
}

/// Bytes and frames that the router has received on each link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received([(u64, u64); 2]);

/// Reads them.
pub(super) fn frames(site: &Site) -> Result<Received> {
    let shown = site.router.ip(&["-json", "-statistics", "link", "show"])?;
    let links: Vec<serde_json::Value> = serde_json::from_str(&shown).context("ip's JSON")?;
    let of = |interface: &str| {
        let link = links.iter().find(|link| link["ifname"] == interface)?;
        let received = &link["stats64"]["rx"];
        Some((received["bytes"].as_u64()?, received["packets"].as_u64()?))
    };
    let [one, other] = ROUTER_INTERFACES
        .map(|interface| of(interface).with_context(|| format!("ip tells no statistics of {interface}")));
    Ok(Received([one?, other?]))
}

/// Fails where frames were longer on average than the underlay's MTU allows: they were super-packets.
///
/// # Errors
/// The average length of a frame.
pub fn frames_are_real(before: &Received, after: &Received) -> Result<()> {
    for ((bytes_before, frames_before), (bytes, frames)) in before.0.iter().zip(&after.0) {
        let (bytes, frames) = (bytes - bytes_before, frames - frames_before);
        ensure!(frames > 0, "no frame passed the router");
        let limit = u64::from(UNDERLAY_MTU) + ETHERNET;
        ensure!(
            bytes <= frames * limit,
            "{frames} frames between the nodes had {} bytes on average: not real frames",
            bytes / frames
        );
    }
    Ok(())
}

/// Counts on the router how packets look between the nodes.
#[derive(Debug)]
pub struct Tap<'site>(&'site Site);

impl<'site> Tap<'site> {
    /// Begins to count.
    ///
    /// # Errors
    /// What nft says.
    pub fn place(site: &'site Site, wire: Wire) -> Result<Self> {
        let matches = match wire {
            Wire::Plain => "ip saddr 172.20.0.0/16 counter\n  ip6 saddr fd20::/48 counter".to_owned(),
            Wire::Udp(port) => format!("udp dport {port} counter"),
        };
        let rules = format!(
            "table inet tap {{\n chain forward {{\n  type filter hook forward priority filter;\n  {matches}\n }}\n}}\n"
        );
        crate::condition::load(&site.router, &rules)?;
        Ok(Self(site))
    }

    /// How many there were.
    ///
    /// # Errors
    /// What nft says.
    pub fn count(&self) -> Result<u64> {
        let output = self
            .0
            .router
            .command("nft")
            .args(["-j", "list", "table", "inet", "tap"])
            .output()
            .context("cannot run nft")?;
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).context("nft's JSON")?;
        let items = shown["nftables"].as_array().context("nft's JSON")?;
        let expressions = items.iter().filter_map(|item| item["rule"]["expr"].as_array());
        Ok(expressions
            .flatten()
            .filter_map(|expression| expression["counter"]["packets"].as_u64())
            .sum())
    }
}

impl Drop for Tap<'_> {
    fn drop(&mut self) {
        // The site may be gone already, and the table with it.
        let _ = self
            .0
            .router
            .command("nft")
            .args(["delete", "table", "inet", "tap"])
            .stderr(Stdio::null())
            .status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(bytes: u64, frames: u64) -> Received {
        Received([(bytes, frames), (64 * frames, frames)])
    }

    #[test]
    fn super_packets_are_not_taken_for_frames() {
        let before = received(1000, 10);
        assert!(frames_are_real(&before, &received(1000 + 1514 * 90, 100)).is_ok());
        assert!(frames_are_real(&before, &received(1000 + 1515 * 90, 100)).is_err());
        assert!(frames_are_real(&before, &before).is_err());
    }
}
