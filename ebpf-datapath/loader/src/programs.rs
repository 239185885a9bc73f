//! A node's programs, as the agent sees them.

use crate::attach::{self, Attachments};
use crate::contents::{self, Circumstances, Contents, NetworkKey, Wanted};
use crate::failure::Failure;
use crate::kernel::Kernel;
use crate::loaded::Loaded;
use crate::object::hash;
use crate::options::Options;
use crate::pins::{Pins, remove};
use crate::place;
use crate::synced::{Synced, Unfinished};
use nix::net::if_::if_nametoindex;
use podlane_datapath_common::{Address, Settings};
use podlane_plan::datapath::{Datapath, Owner};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

/// A node's programs and maps, loaded and pinned. Dropping it changes nothing: what is pinned and attached stays.
///
/// All calls concern the network namespace of the calling thread.
pub struct Programs {
    pub(crate) loaded: Loaded,
    pub(crate) kernel: Kernel,
    pub(crate) names: BTreeMap<Address, String>,
    pins: Pins,
    hash: String,
    lease: u32,
}

impl Programs {
    /// Takes over what is pinned below a directory on a bpffs, as far as it fits: maps of the same ABI, types and sizes, and programs of the same object. Makes
    /// and loads what is missing. Nothing that packets meet changes before [`Programs::sync`].
    ///
    /// # Errors
    /// In words that say what to do: no bpffs there, no permission, a kernel that is too old, the verifier's last words, no memory.
    pub fn open(bpffs: &Path, options: &Options) -> Result<Self, Failure> {
        let mut kernel = Kernel::ask()?;
        kernel.tcx &= !options.clsact;
        let pins = Pins::at(bpffs)?;
        let loaded = Loaded::open(&pins, options)?;
        let jiffies = options.lease.as_secs_f64() * f64::from(kernel.jiffies_per_second);
        let mut programs = Self {
            loaded,
            kernel,
            names: BTreeMap::new(),
            pins,
            hash: hash(),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a cast of a float saturates"
            )]
            lease: (jiffies.ceil() as u32).max(1),
        };
        programs.forget_all_probes();
        Ok(programs)
    }

    /// The hash of the object whose programs these are.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// What the running kernel can do.
    pub const fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Makes maps and attachments as declared. Reads what they are, and changes only what differs: peers and networks first, then what is removed of them, then the settings (a new
    /// generation when anything changed), then attachments. Whatever fails is in the result, and the rest is done all the same.
    pub fn sync(&mut self, datapath: &Datapath, probe_key: Option<[u64; 2]>) -> Synced {
        let mut synced = Synced::default();
        let interfaces = interfaces(datapath);
        match self.loaded.maps.read() {
            Ok((held, latest)) => {
                let circumstances = Circumstances {
                    kernel: self.kernel,
                    lease: self.lease,
                    probe_key,
                    capacity: self.loaded.maps.capacity,
                    interfaces: &interfaces,
                };
                let (wanted, unfinished) = contents::wanted(datapath, &held, &circumstances);
                synced.failures.extend(unfinished);
                let before = synced.failures.len();
                self.fill(&held, &wanted, latest, &mut synced);
                synced.told = synced.failures.len() == before;
            }
            Err(why) => {
                synced.failures.push(Unfinished {
                    what: "the programs' maps".to_owned(),
                    why,
                });
                // Programs are not put before packets with maps of which nothing is known.
                return synced;
            }
        }
        self.names = datapath
            .peers
            .iter()
            .map(|(outer, peer)| (contents::address(*outer), peer.name.clone()))
            .collect();
        let places = place::places(&datapath.attached, &interfaces);
        if attach::sync(self.attachments(), &places, &mut synced) {
            self.remove_old(&mut synced);
        }
        synced
    }

    /// Sends every flow up the stack once more: routes have changed, and a stamp holds the way of the route that it was made by.
    ///
    /// # Errors
    /// When the maps cannot be read or written.
    pub fn end_stamps(&mut self) -> Result<(), Failure> {
        let mut settings = self.loaded.maps.settings()?;
        if settings == Settings::CLOSED {
            return Ok(());
        }
        settings.generation = after(settings.generation);
        self.loaded.maps.set_settings(&settings)
    }

    fn attachments(&mut self) -> Attachments<'_> {
        Attachments {
            pins: &self.pins,
            programs: &mut self.loaded.programs,
            tcx: self.kernel.tcx,
        }
    }

    fn fill(&mut self, held: &Contents, wanted: &Wanted<'_>, latest: u32, synced: &mut Synced) {
        let maps = &mut self.loaded.maps;
        let before = synced.applied;
        let given: BTreeSet<u32> = held.peers.values().map(|peer| peer.index).collect();
        let mut again = Vec::new();
        for (outer, peer) in wanted.peers() {
            let was = held.peers.get(&outer);
            if was == Some(&peer) {
                continue;
            }
            if was.is_none_or(|was| was.index != peer.index) && !given.contains(&peer.index) {
                // Counters of whoever had the index before; written before anybody counts on them.
                synced.took(|| format!("peer {}", shown(&outer)), maps.zero_peer(peer.index));
            }
            match maps.set_peer(&outer, &peer) {
                // Those that are to go have the places.
                Err(failure) if failure.cause == crate::Cause::Full => again.push((outer, peer)),
                result => synced.took(|| format!("peer {}", shown(&outer)), result),
            }
        }
        let mut networks_again = Vec::new();
        for (key, network) in wanted.networks() {
            if held.networks.get(&key) != Some(&network) {
                match maps.set_network(key, &network) {
                    Err(failure) if failure.cause == crate::Cause::Full => {
                        networks_again.push((key, network))
                    }
                    result => synced.took(|| shown_network(&key), result),
                }
            }
        }
        for key in held.networks.keys().filter(|key| !wanted.has_network(key)) {
            synced.took(|| shown_network(key), maps.remove_network(*key));
        }
        for outer in held.peers.keys().filter(|outer| !wanted.has_peer(outer)) {
            synced.took(|| format!("peer {}", shown(outer)), maps.remove_peer(outer));
        }
        for (outer, peer) in again {
            if given.contains(&peer.index) {
                synced.took(|| format!("peer {}", shown(&outer)), maps.zero_peer(peer.index));
            }
            synced.took(|| format!("peer {}", shown(&outer)), maps.set_peer(&outer, &peer));
        }
        for (key, network) in networks_again {
            synced.took(|| shown_network(&key), maps.set_network(key, &network));
        }
        let mut settings = wanted.settings;
        for slot in 0..settings.tunnels.len() {
            if held.settings.tunnels[slot].port == 0 && settings.tunnels[slot].port != 0 {
                let slot = u32::try_from(slot).unwrap_or_default();
                synced.took(|| format!("slot {slot}"), maps.zero_lane(slot));
            }
        }
        if synced.applied > before || settings != held.settings {
            if settings != Settings::CLOSED {
                settings.generation = after(latest);
            }
            synced.took(|| "the settings".to_owned(), maps.set_settings(&settings));
        }
        synced.generation = settings.generation;
    }

    /// Removes the sets and programs that nothing uses any more, after everything has been replaced.
    fn remove_old(&self, synced: &mut Synced) {
        let others = self
            .pins
            .sets()
            .into_iter()
            .filter(|set| *set != self.loaded.set)
            .map(|set| set.path);
        for path in others.chain(self.loaded.set.other_programs(&self.hash)) {
            synced.took(|| path.display().to_string(), remove(&path));
        }
    }
}

fn shown(address: &Address) -> IpAddr {
    IpAddr::from(address.octets()).to_canonical()
}

fn shown_network((length, address): &NetworkKey) -> String {
    let length = if address.is_v4() {
        length.saturating_sub(96)
    } else {
        *length
    };
    format!("network {}/{length}", shown(address))
}

/// The generation after this one. 0 is that of closed settings.
fn after(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

/// The indices of all devices that are named and there.
fn interfaces(datapath: &Datapath) -> BTreeMap<String, u32> {
    let tunnels = datapath.tunnels.values().map(|open| &open.device);
    let ways = datapath
        .peers
        .values()
        .filter_map(|peer| Some(&peer.way.as_ref()?.device));
    let networks = datapath.networks.values().filter_map(|owner| match owner {
        Owner::Local { device } => device.as_ref(),
        Owner::Peer { native, .. } => Some(&native.as_ref()?.device),
        Owner::Unassigned => None,
    });
    let names: BTreeSet<&str> = tunnels
        .chain(ways)
        .chain(networks)
        .map(String::as_str)
        .chain(place::declared(&datapath.attached).map(|(_, device)| device))
        .collect();
    names
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), if_nametoindex(name).ok()?)))
        .collect()
}
