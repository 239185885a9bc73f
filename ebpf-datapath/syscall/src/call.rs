//! The system call itself, and what the kernel reads and writes by pointers.
#![expect(
    unsafe_code,
    reason = "bpf(2) has no safe wrapper; every pointer that is handed over here is to memory that outlives the call and is as large as said"
)]

use nix::libc;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Commands, `enum bpf_cmd` in include/uapi/linux/bpf.h.
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const LINK_DETACH: libc::c_int = 34;

/// One member of `union bpf_attr`, laid out as in include/uapi/linux/bpf.h. Only this module makes them, so that what pointers they have
/// are right.
///
/// # Safety
/// The type is `repr(C)` without padding, and the kernel may write what the command says through the pointers in it.
unsafe trait Attribute {
    const COMMAND: libc::c_int;
}

fn bpf<A: Attribute>(attribute: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is exclusively borrowed for the call, its size is given, and its pointers hold by the trait's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            A::COMMAND,
            std::ptr::from_mut(attribute),
            size_of::<A>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

#[repr(C)]
struct ObjectGet {
    path: u64,
    descriptor: u32,
    flags: u32,
}

// SAFETY: no padding; the kernel reads a string at `path`.
unsafe impl Attribute for ObjectGet {
    const COMMAND: libc::c_int = OBJ_GET;
}

pub(crate) fn open(path: &CStr) -> io::Result<OwnedFd> {
    let mut attribute = ObjectGet {
        path: address(path.as_ptr()),
        descriptor: 0,
        flags: 0,
    };
    let descriptor = bpf(&mut attribute)?;
    let descriptor = libc::c_int::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[repr(C)]
struct ObjectInfo {
    descriptor: u32,
    length: u32,
    info: u64,
}

// SAFETY: no padding; the kernel writes at most `length` bytes at `info`.
unsafe impl Attribute for ObjectInfo {
    const COMMAND: libc::c_int = OBJ_GET_INFO_BY_FD;
}

/// Reads the first words of an object's `struct bpf_…_info`. What an older kernel does not have remains zero.
pub(crate) fn info<const WORDS: usize>(object: BorrowedFd<'_>) -> io::Result<[u32; WORDS]> {
    let mut info = [0_u64; 64];
    let mut attribute = ObjectInfo {
        descriptor: descriptor(object),
        length: u32::try_from(WORDS * size_of::<u32>()).map_err(io::Error::other)?,
        info: address(info.as_mut_ptr()),
    };
    assert!(WORDS * size_of::<u32>() <= size_of_val(&info), "there is room");
    bpf(&mut attribute)?;
    let mut words = [0; WORDS];
    for (at, word) in words.iter_mut().enumerate() {
        let octets = info[at / 2].to_ne_bytes();
        let half = at % 2 * 4;
        *word = u32::from_ne_bytes([octets[half], octets[half + 1], octets[half + 2], octets[half + 3]]);
    }
    Ok(words)
}

#[repr(C)]
struct LinkDetach {
    descriptor: u32,
}

// SAFETY: no padding, and no pointers.
unsafe impl Attribute for LinkDetach {
    const COMMAND: libc::c_int = LINK_DETACH;
}

pub(crate) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute = LinkDetach {
        descriptor: descriptor(link),
    };
    bpf(&mut attribute).map(drop)
}

#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    reserved: u32,
    more: [u64; 4],
}

// SAFETY: no padding; the kernel writes at most `count` numbers at `programs`, and nothing through the null pointers behind.
unsafe impl Attribute for Query {
    const COMMAND: libc::c_int = PROG_QUERY;
}

/// The numbers of the programs on a hook of an interface, in the order in which they run.
pub(crate) fn query(interface: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut programs = vec![0_u32; 64];
    loop {
        let mut attribute = Query {
            target: interface,
            attach_type,
            query_flags: 0,
            attach_flags: 0,
            programs: address(programs.as_mut_ptr()),
            count: u32::try_from(programs.len()).map_err(io::Error::other)?,
            reserved: 0,
            more: [0; 4],
        };
        match bpf(&mut attribute) {
            Ok(_) => {
                programs.truncate(attribute.count as usize);
                return Ok(programs);
            }
            // Nobody has attached anything there (`tcx_prog_query`, kernel/bpf/tcx.c).
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && programs.len() < 1 << 16 => {
                programs.resize(programs.len() * 4, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

#[repr(C)]
struct Element<const COMMAND: libc::c_int> {
    map: u32,
    gap: u32,
    key: u64,
    value: u64,
    flags: u64,
}

// SAFETY: no padding; the kernel reads a key at `key`, and at `value` writes (look-up) or reads (update) one value, a per-CPU map's one for each possible CPU.
unsafe impl<const COMMAND: libc::c_int> Attribute for Element<COMMAND> {
    const COMMAND: libc::c_int = COMMAND;
}

fn element<const COMMAND: libc::c_int, V: aya::Pod>(
    map: BorrowedFd<'_>,
    key: &u32,
    values: &mut [V],
) -> io::Result<()> {
    let mut attribute = Element::<COMMAND> {
        map: descriptor(map),
        gap: 0,
        key: address(key),
        value: address(values.as_mut_ptr()),
        flags: 0,
    };
    bpf(&mut attribute).map(drop)
}

/// Reads a per-CPU array's element. The caller has made sure that there is a value for each possible CPU, and that the map's keys and values have the sizes of `u32` and `V`.
pub(crate) fn look_up<V: aya::Pod>(map: BorrowedFd<'_>, key: u32, values: &mut [V]) -> io::Result<()> {
    element::<MAP_LOOKUP_ELEM, V>(map, &key, values)
}

/// Writes a per-CPU array's element; as [`look_up`].
pub(crate) fn update<V: aya::Pod>(map: BorrowedFd<'_>, key: u32, values: &mut [V]) -> io::Result<()> {
    element::<MAP_UPDATE_ELEM, V>(map, &key, values)
}

#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

// SAFETY: no padding; the kernel reads and writes a key (or four octets) at `from` and `to`, and at most `count` keys and values.
unsafe impl Attribute for Batch {
    const COMMAND: libc::c_int = MAP_LOOKUP_BATCH;
}

/// How far a reading of a map has come.
pub(crate) struct Cursor {
    /// As large as a key, and as a number of a bucket.
    at: Vec<u64>,
    begun: bool,
}

impl Cursor {
    pub(crate) fn new(key_size: usize) -> Self {
        Self {
            at: vec![0; key_size.div_ceil(8).max(1)],
            begun: false,
        }
    }
}

/// Appends up to `count` entries; true: these were the last ones.
///
/// The caller has made sure that the map's keys and values have the sizes of `K` and `V`.
pub(crate) fn batch<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
    count: usize,
) -> io::Result<bool> {
    assert!(size_of::<K>() <= cursor.at.len() * 8, "the cursor holds a key");
    keys.reserve(count);
    values.reserve(count);
    let at = address(cursor.at.as_mut_ptr());
    let mut attribute = Batch {
        from: if cursor.begun { at } else { 0 },
        to: at,
        keys: address(keys.spare_capacity_mut().as_mut_ptr()),
        values: address(values.spare_capacity_mut().as_mut_ptr()),
        count: u32::try_from(count).map_err(io::Error::other)?,
        map: descriptor(map),
        element_flags: 0,
        flags: 0,
    };
    let last = match bpf(&mut attribute) {
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(error),
    };
    cursor.begun = true;
    let read = (attribute.count as usize).min(count);
    // SAFETY: there was room for `count`, the kernel has written `read` of each, and any octets are a value of a `Pod`.
    unsafe {
        keys.set_len(keys.len() + read);
        values.set_len(values.len() + read);
    }
    Ok(last)
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

fn descriptor(object: BorrowedFd<'_>) -> u32 {
    object.as_raw_fd().cast_unsigned()
}
