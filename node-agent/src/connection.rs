//! The way to the API server, which is begun anew when the node's own address is gone.

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use podlane_plan::kernel::UnderlayAddress;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch as latest;

/// Clients for the API server: each has connections of its own.
///
/// A connection whose local address is taken from the node never hears anything again, and nothing ends it: TCP sends again for a quarter of
/// an hour (`tcp_retries2`, Documentation/networking/ip-sysctl.rst of the kernel), and a watch only listens. So whoever speaks to the
/// API server takes the newest client whenever there is another.
pub struct Connection {
    config: Config,
    clients: latest::Sender<Client>,
    /// The node's own addresses that were there when the kernel was last read.
    present: BTreeSet<IpAddr>,
}

impl Connection {
    /// As a kubeconfig says, or as a pod's service account.
    ///
    /// # Errors
    /// When there is neither, or one that cannot be read.
    pub async fn open(kubeconfig: Option<&Path>) -> anyhow::Result<Self> {
        let mut config = match kubeconfig {
            Some(file) => {
                let kubeconfig =
                    Kubeconfig::read_from(file).with_context(|| format!("reading {}", file.display()))?;
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
            }
            None => Config::incluster().context("no --kubeconfig, and no service account of a pod")?,
        };
        config.connect_timeout = Some(Duration::from_secs(10));
        // Retries are the callers' business, who bound them and say them: kube's own go on silently for up to 1000 s.
        config.default_retry = false;
        let clients = latest::Sender::new(Client::try_from(config.clone())?);
        Ok(Self {
            config,
            clients,
            present: BTreeSet::new(),
        })
    }

    /// The client, and every later one.
    pub fn clients(&self) -> latest::Receiver<Client> {
        self.clients.subscribe()
    }

    /// Takes in what addresses there are, and which of them are `own`: begins anew when one of the node's own is gone.
    pub fn notice(&mut self, own: &[IpAddr], there: &[UnderlayAddress]) {
        let there: BTreeSet<IpAddr> = there.iter().map(|it| it.address.addr()).collect();
        let gone = lost(&mut self.present, own, &there);
        if gone.is_empty() {
            return;
        }
        match Client::try_from(self.config.clone()) {
            Ok(client) => {
                tracing::info!(
                    ?gone,
                    "this node's address is gone: speaking to the API server anew"
                );
                self.clients.send_replace(client);
            }
            // The configuration made a client before.
            Err(error) => tracing::error!(%error, "no new client for the API server"),
        }
    }
}

/// Of the addresses that were present those that are there no longer. From then on the node's own that are there are.
fn lost(present: &mut BTreeSet<IpAddr>, own: &[IpAddr], there: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let gone = present.difference(there).copied().collect();
    *present = own
        .iter()
        .filter(|address| there.contains(address))
        .copied()
        .collect();
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &[&str]) -> Vec<IpAddr> {
        text.iter().map(|it| it.parse().expect("an address")).collect()
    }

    #[test]
    fn only_an_own_address_that_was_there_can_be_lost() {
        let mut present = BTreeSet::new();
        let mut look = |own: &[&str], there: &[&str]| {
            lost(
                &mut present,
                &addresses(own),
                &addresses(there).into_iter().collect(),
            )
        };
        assert!(look(&["192.0.2.1"], &[]).is_empty(), "never seen");
        assert!(look(&["192.0.2.1"], &["192.0.2.1", "192.0.2.9"]).is_empty());
        assert!(look(&["192.0.2.1"], &["192.0.2.1"]).is_empty(), "another's");
        assert_eq!(look(&["192.0.2.1"], &["192.0.2.2"]), addresses(&["192.0.2.1"]));
        assert!(look(&["192.0.2.1"], &["192.0.2.2"]).is_empty(), "said once");
        assert!(look(&["192.0.2.2"], &["192.0.2.2"]).is_empty(), "the new one");
        assert_eq!(look(&["192.0.2.2"], &[]), addresses(&["192.0.2.2"]));
    }
}
