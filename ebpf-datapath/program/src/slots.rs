//! Open tunnels. A tunnel keeps its slot while others are closed, so there may be empty ones between: their port and device are 0, and
//! no search is for these.

use podlane_datapath_common::{MAX_TUNNELS, Settings, Tunnel, tunnel_flag};

use crate::kernel::forget;

const _: () = assert!(MAX_TUNNELS.is_power_of_two());

/// What of a tunnel is searched for.
struct Key {
    port: u16,
    flags: u16,
    vni: u32,
    device: u32,
}

/// The first slot whose tunnel is so.
#[inline(always)]
fn find(settings: &Settings, is: impl Fn(&Key) -> bool) -> Option<(u32, &Tunnel)> {
    let mut slot = 0;
    while slot < MAX_TUNNELS {
        let tunnel = &settings.tunnels[slot];
        // Volatile: the compiler would keep what it has read for a second search, and the verifier then follow each of the ways on which it can have
        // been read, two for each slot.
        // SAFETY: a valid reference's fields.
        let key = unsafe {
            Key {
                port: (&raw const tunnel.port).read_volatile(),
                flags: (&raw const tunnel.flags).read_volatile(),
                vni: (&raw const tunnel.vni).read_volatile(),
                device: (&raw const tunnel.device).read_volatile(),
            }
        };
        if is(&key) {
            let slot = forget(slot as u32);
            return Some((slot, &settings.tunnels[slot as usize & (MAX_TUNNELS - 1)]));
        }
        slot += 1;
    }
    None
}

/// The tunnel with this device and VNI (as tunnel headers have it).
#[inline(always)]
pub(crate) fn by_device(settings: &Settings, device: u32, vni: u32) -> Option<(u32, &Tunnel)> {
    find(settings, |tunnel| tunnel.device == device && tunnel.vni == vni)
}

/// The tunnel with this port (network byte order) and VNI.
#[inline(always)]
pub(crate) fn by_port(settings: &Settings, port: u16, vni: u32) -> Option<(u32, &Tunnel)> {
    if port == 0 {
        return None;
    }
    find(settings, |tunnel| tunnel.port == port && tunnel.vni == vni)
}

/// Whether any tunnel has this port.
#[inline(never)]
pub(crate) fn has_port(settings: &Settings, port: u16) -> bool {
    port != 0 && find(settings, |tunnel| tunnel.port == port).is_some()
}

/// Whether this device stands in for a driver that is not there.
#[inline(never)]
pub(crate) fn is_stand_in(settings: &Settings, device: u32) -> bool {
    find(settings, |tunnel| {
        tunnel.device == device && tunnel.flags & tunnel_flag::STAND_IN != 0
    })
    .is_some()
}
