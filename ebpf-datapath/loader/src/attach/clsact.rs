//! Attachments as filters of a clsact queueing discipline, where the kernel has no tcx (before Linux 6.6).

use super::Attachments;
use super::netlink::{
    DELETE_FILTER, DELETE_QDISC, Found, GET_FILTER, GET_QDISC, NEW_FILTER, NEW_QDISC, Netlink, parent,
};
use crate::failure::{Cause, Failure};
use crate::loaded::Program;
use crate::pins::{Pins, make, names};
use crate::place::{Place, Role};
use crate::synced::{Synced, Unfinished};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption,
};
use podlane_bpf_syscall::Hook;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Behind all filters whose priority the kernel chose: those are 49152 and less (`tcf_auto_prio`, net/sched/cls_api.c).
const PRIORITY: u16 = 60_000;

/// Our filters' handles: this and the role's number.
const HANDLE: u32 = 0x0050_4400;

/// Our filters' names begin so.
const NAME: &str = "podlane:";

/// `ETH_P_ALL`, include/uapi/linux/if_ether.h.
const ALL_PROTOCOLS: u16 = 3;

pub(super) fn sync(with: Attachments<'_>, places: &BTreeMap<Place, &str>, synced: &mut Synced) {
    let mut failed = |what: &str, error: &io::Error| {
        synced.failures.push(Unfinished {
            what: "attachments".to_owned(),
            why: Failure::of_io(what, error),
        });
    };
    let mut netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => return failed("open a netlink socket", &error),
    };
    let disciplines = match disciplines(&mut netlink) {
        Ok(disciplines) => disciplines,
        Err(error) => return failed("read the queueing disciplines", &error),
    };
    let mut filters = BTreeMap::new();
    for interface in disciplines.iter().copied() {
        match ours(&mut netlink, interface) {
            Ok((ours, _)) => filters.extend(ours),
            Err(error) => failed("read the filters", &error),
        }
    }
    for (place, device) in places {
        let Some(program) = with.programs.get(&place.role) else {
            continue;
        };
        let held = filters.get(place).copied();
        if held != Some(program.id) {
            let result = discipline(&mut netlink, with.pins, place.interface, &disciplines)
                .and_then(|()| put(&mut netlink, *place, program, held.is_some()));
            synced.took(|| format!("program {} on {device}", place.role.name()), result);
        }
    }
    let undeclared: BTreeSet<_> = filters
        .keys()
        .filter(|place| !places.contains_key(place))
        .copied()
        .collect();
    for place in &undeclared {
        synced.took(|| words(*place), remove(&mut netlink, *place));
    }
    let needed: BTreeSet<u32> = places.keys().map(|place| place.interface).collect();
    for interface in marked(with.pins).difference(&needed) {
        let mut taken = |what: String, result| synced.took(|| what, result);
        release(&mut netlink, with.pins, *interface, &disciplines, &mut taken);
    }
}

/// Devices with a clsact queueing discipline.
fn disciplines(netlink: &mut Netlink) -> io::Result<BTreeSet<u32>> {
    let found = netlink.dump(GET_QDISC, &TcMessage::default())?;
    Ok(found
        .into_iter()
        .filter_map(|found| match found {
            Found::Read(message) => message
                .attributes
                .contains(&TcAttribute::Kind("clsact".to_owned()))
                .then(|| message.header.index.cast_unsigned()),
            Found::Unread(_) => None,
        })
        .collect())
}

/// Our filters on a device, with the numbers of their programs; and how many others' there are.
fn ours(netlink: &mut Netlink, interface: u32) -> io::Result<(BTreeMap<Place, u32>, usize)> {
    let (mut ours, mut others) = (BTreeMap::new(), 0);
    for hook in [Hook::Ingress, Hook::Egress] {
        let mut message = TcMessage::with_index(interface.cast_signed());
        message.header.parent = parent(minor(hook));
        for found in netlink.dump(GET_FILTER, &message)? {
            let (header, role) = match &found {
                Found::Read(message) => (&message.header, role(message)),
                Found::Unread(header) => (header, None),
            };
            match role.filter(|(role, _)| role.hook() == hook) {
                Some((role, id)) => {
                    ours.insert(Place { interface, role }, id);
                }
                // With handle 0 a classifier itself is shown, without a filter.
                None => others += usize::from(u32::from(header.handle) != 0),
            }
        }
    }
    Ok((ours, others))
}

/// Whose place a filter of ours is, and its program's number.
fn role(message: &TcMessage) -> Option<(Role, u32)> {
    let role = Role::ALL
        .into_iter()
        .find(|role| message.header.handle == handle(*role) && message.header.info == info())?;
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let mut id = None;
    let mut named = false;
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(found)) => id = Some(*found),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => named = *name == name_of(role),
            _ => {}
        }
    }
    Some((role, id?)).filter(|_| named)
}

fn name_of(role: Role) -> String {
    format!("{NAME}{}", role.name())
}

fn handle(role: Role) -> TcHandle {
    TcHandle::from(HANDLE + role as u32 + 1)
}

/// Priority and protocol, as `tcm_info` has them.
fn info() -> u32 {
    u32::from(PRIORITY) << 16 | u32::from(ALL_PROTOCOLS.to_be())
}

const fn minor(hook: Hook) -> u16 {
    match hook {
        Hook::Ingress => TcHandle::MIN_INGRESS,
        Hook::Egress => TcHandle::MIN_EGRESS,
    }
}

fn words(place: Place) -> String {
    format!("program {} on device {}", place.role.name(), place.interface)
}

fn filter(place: Place, attributes: Vec<TcAttribute>) -> TcMessage {
    TcMessage::from_parts(
        TcHeader {
            index: place.interface.cast_signed(),
            handle: handle(place.role),
            parent: parent(minor(place.role.hook())),
            info: info(),
            ..TcHeader::default()
        },
        attributes,
    )
}

/// Puts a filter in, or another program into the one that is there: each packet meets the old one or the new one (`cls_bpf_change`, net/sched/cls_bpf.c).
fn put(netlink: &mut Netlink, place: Place, program: &Program, replace: bool) -> Result<(), Failure> {
    let failed =
        |error: &(dyn std::error::Error + 'static)| Failure::of(&format!("attach {}", words(place)), error);
    let descriptor = program.classifier.fd().map_err(|error| failed(&error))?;
    let options = [
        TcFilterBpfOption::ProgFd(descriptor.as_fd().as_raw_fd().cast_unsigned()),
        TcFilterBpfOption::ProgName(name_of(place.role)),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let message = filter(
        place,
        vec![
            TcAttribute::Kind("bpf".to_owned()),
            TcAttribute::Options(options.map(TcOption::Bpf).to_vec()),
        ],
    );
    let flags = if replace { 0 } else { NLM_F_CREATE | NLM_F_EXCL };
    match netlink.change(NEW_FILTER, flags, &message) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Failure::new(
            Cause::Other,
            format!(
                "a filter that is not Podlane's has priority {PRIORITY} and the handle {:#x}: its owner has to choose another",
                HANDLE + place.role as u32 + 1
            ),
        )),
        result => result.map_err(|error| failed(&error)),
    }
}

fn remove(netlink: &mut Netlink, place: Place) -> Result<(), Failure> {
    match netlink.change(DELETE_FILTER, 0, &filter(place, Vec::new())) {
        // The device is gone, or the filter: as wanted.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(nix::libc::ENOENT | nix::libc::ENODEV | nix::libc::EINVAL)
            ) =>
        {
            Ok(())
        }
        result => result.map_err(|error| Failure::of_io(&format!("remove {}", words(place)), &error)),
    }
}

fn clsact(interface: u32) -> TcMessage {
    TcMessage::from_parts(
        TcHeader {
            index: interface.cast_signed(),
            handle: parent(0),
            parent: TcHandle::CLSACT,
            ..TcHeader::default()
        },
        vec![TcAttribute::Kind("clsact".to_owned())],
    )
}

/// Makes a device's queueing discipline where there is none, and writes down that it is ours.
fn discipline(
    netlink: &mut Netlink,
    pins: &Pins,
    interface: u32,
    there: &BTreeSet<u32>,
) -> Result<(), Failure> {
    if there.contains(&interface) {
        return Ok(());
    }
    match netlink.change(NEW_QDISC, NLM_F_CREATE | NLM_F_EXCL, &clsact(interface)) {
        Ok(()) => make(&pins.marks().join(interface.to_string())),
        // The second program on the same device.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && marked(pins).contains(&interface) => {
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Failure::new(
            Cause::Other,
            "the device has an ingress queueing discipline, which has no egress: replace it (tc qdisc del dev … ingress; tc qdisc add dev … clsact)",
        )),
        Err(error) => Err(Failure::of_io("make a clsact queueing discipline", &error)),
    }
}

/// Devices whose queueing discipline is ours.
fn marked(pins: &Pins) -> BTreeSet<u32> {
    names(&pins.marks())
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect()
}

/// Removes a queueing discipline of ours, unless others have filters there, and the note that it is ours.
fn release(
    netlink: &mut Netlink,
    pins: &Pins,
    interface: u32,
    there: &BTreeSet<u32>,
    taken: &mut dyn FnMut(String, Result<(), Failure>),
) {
    let what = format!("the clsact queueing discipline of device {interface}");
    let failed = |error: &io::Error| Failure::of_io(&format!("remove {what}"), error);
    if there.contains(&interface) {
        match ours(netlink, interface) {
            Ok((ours, 0)) if ours.is_empty() => {
                let result = netlink.change(DELETE_QDISC, 0, &clsact(interface));
                taken(what.clone(), result.map_err(|error| failed(&error)));
            }
            Ok(_) => {}
            Err(error) => taken(what.clone(), Err(failed(&error))),
        }
    }
    if let Err(error) = fs::remove_dir(pins.marks().join(interface.to_string())) {
        taken(what.clone(), Err(failed(&error)));
    }
}

/// Removes our filters on every device of this network namespace, and the queueing disciplines that are ours (without pins, none is known to be) and that nobody else uses: what was removed, and how it went.
pub(crate) fn clean(pins: Option<&Pins>) -> Vec<(String, Result<(), Failure>)> {
    let mut removed = Vec::new();
    let failed = |error: &io::Error| Err(Failure::of_io("read the filters", error));
    let found = Netlink::open().and_then(|mut netlink| Ok((disciplines(&mut netlink)?, netlink)));
    let (there, mut netlink) = match found {
        Ok(found) => found,
        Err(error) => return vec![("filters".to_owned(), failed(&error))],
    };
    for interface in &there {
        match ours(&mut netlink, *interface) {
            Ok((ours, _)) => {
                for place in ours.into_keys() {
                    removed.push((words(place), remove(&mut netlink, place)));
                }
            }
            Err(error) => removed.push((format!("filters of device {interface}"), failed(&error))),
        }
    }
    let Some(pins) = pins else { return removed };
    for interface in marked(pins) {
        release(&mut netlink, pins, interface, &there, &mut |what, result| {
            removed.push((what, result))
        });
    }
    removed
}
