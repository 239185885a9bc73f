//! Attachments as links (tcx), pinned by device and program.

use super::Attachments;
use crate::failure::Failure;
use crate::loaded::Program;
use crate::pins::{names, unpin};
use crate::place::Place;
use crate::synced::{Followers, Synced};
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{SchedClassifier, TcAttachType};
use podlane_bpf_syscall as syscall;
use podlane_bpf_syscall::{Hook, link, open, programs};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::Path;

pub(super) fn sync(with: Attachments<'_>, places: &BTreeMap<Place, &str>, synced: &mut Synced) {
    let directory = with.pins.links();
    let pinned: BTreeSet<String> = names(&directory).into_iter().collect();
    for (place, device) in places {
        let pin = directory.join(place.pin());
        let Some(program) = with.programs.get_mut(&place.role) else {
            continue;
        };
        let found = if pinned.contains(&place.pin()) {
            at(&pin, *place)
        } else {
            Found::Nothing
        };
        let what = || format!("program {} on {device}", place.role.name());
        match found {
            Found::Attached(id) if id == program.id => followers(*place, device, program.id, synced),
            Found::Attached(_) => synced.took(what, replace(&pin, program)),
            Found::Nothing => synced.took(what, attach(&pin, *place, device, program)),
            Found::Dead => synced.took(
                what,
                unpin(&pin).and_then(|()| attach(&pin, *place, device, program)),
            ),
        }
    }
    // What is no place of ours by its name is nobody's: the directory is ours.
    for name in pinned {
        if Place::of_pin(&name).is_none_or(|place| !places.contains_key(&place)) {
            synced.took(|| format!("attachment {name}"), detach(&directory.join(&name)));
        }
    }
}

enum Found {
    /// A link, at its place, of the program with this number.
    Attached(u32),
    /// A pin of a link that is on no device any more, or on another.
    Dead,
    Nothing,
}

fn at(pin: &Path, place: Place) -> Found {
    match open(pin).and_then(|pinned| link(pinned.as_fd())) {
        Ok(Some(link)) if link.interface == Some(place.interface) && link.hook == place.role.hook() => {
            Found::Attached(link.program)
        }
        _ => Found::Dead,
    }
}

const fn kind(hook: Hook) -> TcAttachType {
    match hook {
        Hook::Ingress => TcAttachType::Ingress,
        Hook::Egress => TcAttachType::Egress,
    }
}

fn attach(pin: &Path, place: Place, device: &str, program: &mut Program) -> Result<(), Failure> {
    let failed =
        |error: &(dyn std::error::Error + 'static)| Failure::of(&format!("attach to {device}"), error);
    let classifier = &mut program.classifier;
    let id = classifier
        .attach_with_options(
            device,
            kind(place.role.hook()),
            TcAttachOptions::TcxOrder(LinkOrder::last()),
        )
        .map_err(|error| failed(&error))?;
    let link = classifier.take_link(id).map_err(|error| failed(&error))?;
    let link = FdLink::try_from(link).map_err(|error| failed(&error))?;
    link.pin(pin).map_err(|error| failed(&error))?;
    Ok(())
}

/// Takes a program off its device, at once, and removes the pin.
fn detach(pin: &Path) -> Result<(), Failure> {
    if let Ok(link) = open(pin) {
        // Of a dead link there is nothing to take off; of a live one the kernel takes it off when its pin is gone.
        let _ = syscall::detach(link.as_fd());
    }
    unpin(pin)
}

/// Each packet meets the old program or the new one (`tcx_link_update`, kernel/bpf/tcx.c).
fn replace(pin: &Path, program: &mut Program) -> Result<(), Failure> {
    let failed = |error: &(dyn std::error::Error + 'static)| Failure::of("replace a program", error);
    let old = PinnedLink::from_pin(pin).map_err(|error| failed(&error))?;
    let link = SchedClassifierLink::try_from(FdLink::from(old)).map_err(|error| failed(&error))?;
    let classifier: &mut SchedClassifier = &mut program.classifier;
    let id = classifier.attach_to_link(link).map_err(|error| failed(&error))?;
    // The pin keeps it.
    classifier.take_link(id).map_err(|error| failed(&error))?;
    Ok(())
}

/// Notes whose programs run after ours. A hook that cannot be asked has no bearing on packets.
fn followers(place: Place, device: &str, id: u32, synced: &mut Synced) {
    let Ok(running) = programs(place.interface, place.role.hook()) else {
        return;
    };
    let after: Vec<u32> = running
        .into_iter()
        .skip_while(|program| *program != id)
        .skip(1)
        .collect();
    if !after.is_empty() {
        synced.followers.push(Followers {
            device: device.to_owned(),
            hook: place.role.hook(),
            programs: after,
        });
    }
}

/// Removes every attachment: what was removed, and how it went.
pub(crate) fn clean(directory: &Path) -> Vec<(String, Result<(), Failure>)> {
    let describe = |name: &str| match Place::of_pin(name) {
        Some(place) => format!("program {} on device {}", place.role.name(), place.interface),
        None => format!("attachment {name}"),
    };
    names(directory)
        .into_iter()
        .map(|name| (describe(&name), detach(&directory.join(&name))))
        .collect()
}
