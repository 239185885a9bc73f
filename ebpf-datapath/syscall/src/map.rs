//! Reading maps.

use crate::call;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How a map was made (`struct bpf_map_info`, include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// The map's number, by which programs' infos name it.
    pub id: u32,
    /// Octets of a key.
    pub key_size: u32,
    /// Octets of a value.
    pub value_size: u32,
    /// How many entries it can have.
    pub max_entries: u32,
    /// `BPF_F_NO_PREALLOC` and the like.
    pub flags: u32,
}

/// How a map was made.
///
/// # Errors
/// The kernel's, as when the descriptor is no map's.
pub fn shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    let [kind, id, key_size, value_size, max_entries, flags] = call::info(map)?;
    Ok(MapShape {
        kind,
        id,
        key_size,
        value_size,
        max_entries,
        flags,
    })
}

/// `BPF_MAP_TYPE_PERCPU_ARRAY`.
const PER_CPU_ARRAY: u32 = 6;

/// A per-CPU array whose elements are read and written without asking each time how many CPUs there are.
#[derive(Debug)]
pub struct PerCpu<V> {
    /// One for each possible CPU.
    values: Vec<V>,
    map: OwnedFd,
}

impl<V: aya::Pod + Default> PerCpu<V> {
    /// Takes a per-CPU array with values of this type, whose size eight has to divide.
    ///
    /// # Errors
    /// Another kind of map or another size; and the kernel's own.
    pub fn new(map: OwnedFd) -> io::Result<Self> {
        let shape = shape(map.as_fd())?;
        let fits =
            shape.kind == PER_CPU_ARRAY && shape.key_size == 4 && shape.value_size as usize == size_of::<V>();
        // The kernel puts each CPU's value at a multiple of eight (`bpf_percpu_array_copy`, kernel/bpf/arraymap.c).
        if !fits || !size_of::<V>().is_multiple_of(8) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the map is no per-CPU array of {} octets", size_of::<V>()),
            ));
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        Ok(Self {
            values: vec![V::default(); cpus],
            map,
        })
    }

    /// The values of an element, one for each possible CPU.
    ///
    /// # Errors
    /// The kernel's, as when there is no such element.
    pub fn read(&mut self, index: u32) -> io::Result<&[V]> {
        call::look_up(self.map.as_fd(), index, &mut self.values)?;
        Ok(&self.values)
    }

    /// Gives an element the default value on each CPU.
    ///
    /// # Errors
    /// The kernel's, as when there is no such element.
    pub fn reset(&mut self, index: u32) -> io::Result<()> {
        self.values.fill(V::default());
        call::update(self.map.as_fd(), index, &mut self.values)
    }
}

/// All entries of a map that the kernel reads in batches: a hash (Linux 5.6) or a trie (5.13). While others write, an entry may be missed
/// or come twice.
///
/// # Errors
/// Keys or values of another size; and the kernel's own.
pub fn entries<K: aya::Pod, V: aya::Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let shape = shape(map)?;
    if (shape.key_size as usize, shape.value_size as usize) != (size_of::<K>(), size_of::<V>()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "the map's keys and values have {} and {} octets, not {} and {}",
                shape.key_size,
                shape.value_size,
                size_of::<K>(),
                size_of::<V>()
            ),
        ));
    }
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut cursor = call::Cursor::new(size_of::<K>());
    let mut count = 1024;
    let mut all = Vec::new();
    loop {
        let result = call::batch::<K, V>(map, &mut cursor, &mut keys, &mut values, count);
        all.extend(keys.drain(..).zip(values.drain(..)));
        match result {
            Ok(true) => return Ok(all),
            Ok(false) => {}
            // One bucket of the hash has more (`__htab_map_lookup_and_delete_batch`, kernel/bpf/hashtab.c).
            Err(error) if error.kind() == io::ErrorKind::StorageFull && count < 1 << 24 => count *= 4,
            Err(error) => return Err(error),
        }
    }
}
