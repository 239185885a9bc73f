//! The programs in the kernel: taken over where they are this very object's, loaded otherwise.

use crate::failure::Failure;
use crate::maps::{self, Maps};
use crate::object::{hash, object};
use crate::options::Options;
use crate::pins::{Pins, Set, make, remove};
use crate::place::Role;
use aya::EbpfLoader;
use aya::programs::SchedClassifier;
use std::collections::BTreeMap;

/// The program that the agent runs itself.
const PROBE: &str = "probe_send";

/// Programs and the maps that they use.
pub(crate) struct Loaded {
    pub(crate) set: Set,
    pub(crate) maps: Maps,
    pub(crate) programs: BTreeMap<Role, Program>,
    pub(crate) probe: SchedClassifier,
}

/// A program, and its number in the kernel.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) classifier: SchedClassifier,
    pub(crate) id: u32,
}

impl Loaded {
    /// Takes over or makes maps, and takes over or loads programs. Nothing that packets meet changes.
    pub(crate) fn open(pins: &Pins, options: &Options) -> Result<Self, Failure> {
        let wanted = maps::wanted(object(), options)?;
        let fitting = pins
            .sets()
            .into_iter()
            .find(|set| set.abi == podlane_datapath_common::ABI && maps::fit(set, &wanted));
        let set = match fitting {
            Some(set) => set,
            None => pins.new_set()?,
        };
        match Self::pinned(&set, options) {
            Ok(loaded) => Ok(loaded),
            // Something is not pinned yet, or no longer.
            Err(_) => {
                load(&set, wanted.keys().map(String::as_str), options)?;
                Self::pinned(&set, options)
            }
        }
    }

    fn pinned(set: &Set, options: &Options) -> Result<Self, Failure> {
        let directory = set.programs(&hash());
        let take = |name: &str| {
            let pin = directory.join(name);
            SchedClassifier::from_pin(&pin)
                .map_err(|error| Failure::of(&format!("take over the program {}", pin.display()), &error))
        };
        let programs = Role::ALL.into_iter().map(|role| {
            let classifier = take(role.name())?;
            let info = classifier.info();
            let info = info.map_err(|error| Failure::of("ask for a program's number", &error))?;
            Ok((
                role,
                Program {
                    id: info.id(),
                    classifier,
                },
            ))
        });
        Ok(Self {
            programs: programs.collect::<Result<_, Failure>>()?,
            probe: take(PROBE)?,
            maps: Maps::open(set, options)?,
            set: set.clone(),
        })
    }
}

/// Loads the object's programs, with the set's maps (which are made where they are missing), and pins them.
fn load<'a>(set: &Set, maps: impl Iterator<Item = &'a str>, options: &Options) -> Result<(), Failure> {
    let sizes = maps::sizes(options);
    let mut loader = EbpfLoader::new();
    // No program is relocated by the kernel's own types, and reading them takes memory and time.
    loader.btf(None);
    for (name, entries) in sizes {
        loader.map_max_entries(name, entries);
    }
    for name in maps {
        loader.map_pin_path(name, set.maps().join(name));
    }
    let mut loaded = loader
        .load(object())
        .map_err(|error| Failure::of("make the programs' maps", &error))?;
    let directory = set.programs(&hash());
    remove(&directory)?;
    make(&directory)?;
    for name in Role::ALL.map(Role::name).into_iter().chain([PROBE]) {
        let program: &mut SchedClassifier = loaded
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| damaged(name))?;
        program
            .load()
            .map_err(|error| Failure::of(&format!("load the program {name}"), &error))?;
        program
            .pin(directory.join(name))
            .map_err(|error| Failure::of(&format!("pin the program {name}"), &error))?;
    }
    Ok(())
}

fn damaged(name: &str) -> Failure {
    Failure::new(
        crate::Cause::Other,
        format!("the programs' object file has no program {name}"),
    )
}
