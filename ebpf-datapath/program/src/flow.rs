//! Flows: noting where they enter, stamping where the stack lets them out (docs/datapath.md, "The leased bypass").

use podlane_datapath_common::{
    Address, Flow4, Flow6, FlowKind, FlowState, NATIVE_SLOT, Peer, PodNetwork, Settings, Tunnel, peer_flag,
    settings_flag,
};

use crate::kernel::{Packet, jiffies};
use crate::maps::{FLOWS4, FLOWS6, scratch};
use crate::packet::{Ip, Transport, transport};

/// A flow's key.
pub(crate) trait Tuple: Copy {
    /// What is known of it. The place stays a flow's even when the kernel gives it to another one meanwhile: then what is read is checked
    /// against the packet as ever, and what is written lets that one bypass no more than one lease longer.
    fn state(&self) -> Option<*mut FlowState>;
    /// Writes all of what is known of it, at once for those who read it.
    fn write(&self, state: &FlowState);
}

impl Tuple for Flow4 {
    #[inline(always)]
    fn state(&self) -> Option<*mut FlowState> {
        FLOWS4.get_ptr_mut(self)
    }
    #[inline(always)]
    fn write(&self, state: &FlowState) {
        // Without room for it the flow goes on by the stack.
        let _ = FLOWS4.insert(self, state, 0);
    }
}

impl Tuple for Flow6 {
    #[inline(always)]
    fn state(&self) -> Option<*mut FlowState> {
        FLOWS6.get_ptr_mut(self)
    }
    #[inline(always)]
    fn write(&self, state: &FlowState) {
        // As above.
        let _ = FLOWS6.insert(self, state, 0);
    }
}

/// A packet's flow, as far as it may be noted, stamped or bypass.
pub(crate) struct Flow<K> {
    pub(crate) key: K,
    pub(crate) transport: Transport,
    /// What is known of it.
    state: Option<*mut FlowState>,
}

/// The flow of a packet whose IP header stands at an offset; none where flows do not bypass, or this packet is not to be noted.
#[inline(always)]
pub(crate) fn of_packet<I: Ip>(packet: &Packet, settings: &Settings, at: usize) -> Option<Flow<I::Flow>> {
    if settings.flags & settings_flag::BYPASS == 0 {
        return None;
    }
    let transport = transport::<I>(packet, at)?;
    if !transport.is_steady {
        return None;
    }
    let ip: &I = packet.at(at)?;
    let key = ip.flow(transport.ports);
    let state = key.state();
    Some(Flow {
        key,
        transport,
        state,
    })
}

const NOTED: u32 = FlowKind::Noted as u32;
const SENT_ENCAPSULATED: u32 = FlowKind::SentEncapsulated as u32;
const SENT_PLAIN: u32 = FlowKind::SentPlain as u32;
const RECEIVED_ENCAPSULATED: u32 = FlowKind::ReceivedEncapsulated as u32;
const RECEIVED_PLAIN: u32 = FlowKind::ReceivedPlain as u32;

impl<K: Tuple> Flow<K> {
    /// What is known of it under these settings.
    #[inline(always)]
    fn known(&self, settings: &Settings) -> Option<&'static mut FlowState> {
        // SAFETY: a map's value is there as long as the program runs; see `Tuple::state`.
        let state = unsafe { &mut *self.state? };
        (state.generation == settings.generation).then_some(state)
    }

    /// The stamp, while it lets packets bypass.
    #[inline(always)]
    pub(crate) fn stamp(&self, settings: &Settings) -> Option<&'static FlowState> {
        let state = self.known(settings)?;
        (state.kind != NOTED && jiffies().wrapping_sub(state.stamped) < settings.lease).then_some(state)
    }

    /// Whether this device's check has passed it before, under these settings.
    #[inline(always)]
    pub(crate) fn is_known_from(&self, settings: &Settings, interface: u32) -> bool {
        self.known(settings)
            .is_some_and(|state| state.kind <= SENT_PLAIN && state.pod_interface == interface)
    }

    /// Notes it as sent by the pod behind a device.
    #[inline(always)]
    pub(crate) fn note_sent(&self, settings: &Settings, interface: u32) {
        if let Some(state) = self.known(settings)
            && state.kind <= SENT_PLAIN
            && state.pod_interface == interface
        {
            state.noted = jiffies();
            return;
        }
        let Some(state) = scratch() else { return };
        *state = FlowState::UNKNOWN;
        state.noted = jiffies();
        state.generation = settings.generation;
        state.pod_interface = interface;
        self.key.write(state);
    }

    /// Notes it as received from a peer by a tunnel.
    #[inline(always)]
    pub(crate) fn note_encapsulated<O: Ip>(
        &self,
        settings: &Settings,
        outer: &O,
        tunnel: &Tunnel,
        slot: u32,
        peer: &Peer,
    ) {
        if let Some(state) = self.known(settings)
            && (state.kind == RECEIVED_ENCAPSULATED || state.kind == NOTED && state.pod_interface == 0)
            && state.slot == slot
            && state.port == tunnel.port
            && outer.goes(&state.outer_source, &state.outer_destination)
        {
            state.noted = jiffies();
            return;
        }
        let Some(state) = scratch() else { return };
        *state = FlowState::UNKNOWN;
        state.noted = jiffies();
        state.generation = settings.generation;
        state.outer_source = outer.source();
        state.outer_destination = outer.destination();
        state.vni = tunnel.vni;
        state.port = tunnel.port;
        state.tunnel_flags = tunnel.flags;
        state.slot = slot;
        state.peer = peer.index;
        self.key.write(state);
    }

    /// Notes it as received from a peer by the native lane.
    #[inline(always)]
    pub(crate) fn note_plain(&self, settings: &Settings, came_from: [u8; 6], network: &PodNetwork) {
        if let Some(state) = self.known(settings)
            && (state.kind == RECEIVED_PLAIN || state.kind == NOTED && state.pod_interface == 0)
            && state.port == 0
            && state.came_from == came_from
        {
            state.noted = jiffies();
            return;
        }
        let Some(state) = scratch() else { return };
        *state = FlowState::UNKNOWN;
        state.noted = jiffies();
        state.generation = settings.generation;
        state.slot = NATIVE_SLOT;
        state.peer = network.peer;
        state.came_from = came_from;
        self.key.write(state);
    }

    /// What was noted within the lease.
    #[inline(always)]
    fn noted(&self, settings: &Settings) -> Option<&'static mut FlowState> {
        let state = self.known(settings)?;
        (jiffies().wrapping_sub(state.noted) < settings.lease).then_some(state)
    }

    /// Stamps it as let out by a tunnel device, if a pod has sent it.
    #[inline(always)]
    pub(crate) fn stamp_encapsulated(&self, settings: &Settings, sent: &SentEncapsulated<'_>) {
        let Some(state) = self.noted(settings) else { return };
        if state.kind > SENT_PLAIN || state.pod_interface == 0 {
            return;
        }
        if state.kind == SENT_ENCAPSULATED
            && state.slot == sent.slot
            && state.outer_destination == *sent.destination
            && state.ttl == sent.ttl
            && state.link == sent.link
        {
            state.stamped = jiffies();
            return;
        }
        let Some(new) = scratch() else { return };
        let peer = sent.peer;
        *new = FlowState::UNKNOWN;
        new.noted = state.noted;
        new.stamped = jiffies();
        new.generation = settings.generation;
        new.kind = SENT_ENCAPSULATED;
        new.pod_interface = state.pod_interface;
        new.underlay = peer.interface;
        new.next_hop_family = if peer.flags & peer_flag::SEVERAL_WAYS != 0 {
            0
        } else {
            peer.next_hop_family
        };
        new.next_hop = peer.next_hop;
        new.outer_source = peer.source;
        new.outer_destination = *sent.destination;
        new.vni = sent.tunnel.vni;
        new.port = sent.tunnel.port;
        new.tunnel_flags = sent.tunnel.flags;
        new.slot = sent.slot;
        new.peer = peer.index;
        new.mtu = peer.mtu;
        new.link = sent.link;
        new.ttl = sent.ttl;
        self.key.write(new);
    }

    /// Stamps it as let out by the underlay device as it is, if a pod has sent it.
    #[inline(always)]
    pub(crate) fn stamp_plain(&self, settings: &Settings, interface: u32, network: &PodNetwork) {
        let Some(state) = self.noted(settings) else { return };
        if state.kind > SENT_PLAIN || state.pod_interface == 0 {
            return;
        }
        if state.kind == SENT_PLAIN && state.underlay == interface && state.next_hop == network.next_hop {
            state.stamped = jiffies();
            return;
        }
        let Some(new) = scratch() else { return };
        *new = FlowState::UNKNOWN;
        new.noted = state.noted;
        new.stamped = jiffies();
        new.generation = settings.generation;
        new.kind = SENT_PLAIN;
        new.pod_interface = state.pod_interface;
        new.underlay = interface;
        new.next_hop_family = if network.next_hop.is_v4() { 4 } else { 6 };
        new.next_hop = network.next_hop;
        new.slot = NATIVE_SLOT;
        new.peer = network.peer;
        new.mtu = network.mtu;
        self.key.write(new);
    }

    /// Stamps it as let out by a pod's device, if the underlay has brought it; `leads_there`: whether the device leads to the destination.
    #[inline(always)]
    pub(crate) fn stamp_received(
        &self,
        settings: &Settings,
        interface: u32,
        link: [u8; 12],
        leads_there: impl FnOnce() -> bool,
    ) {
        let Some(state) = self.noted(settings) else { return };
        if state.kind > SENT_PLAIN {
            if state.pod_interface == interface && state.link == link {
                state.stamped = jiffies();
                return;
            }
        } else if state.kind != NOTED || state.pod_interface != 0 {
            return;
        }
        if !leads_there() {
            return;
        }
        let Some(new) = scratch() else { return };
        *new = *state;
        new.stamped = jiffies();
        new.kind = if state.port != 0 {
            RECEIVED_ENCAPSULATED
        } else {
            RECEIVED_PLAIN
        };
        new.pod_interface = interface;
        new.link = link;
        self.key.write(new);
    }
}

/// What a tunnel device lets out.
pub(crate) struct SentEncapsulated<'a> {
    pub(crate) destination: &'a Address,
    pub(crate) tunnel: &'a Tunnel,
    pub(crate) slot: u32,
    pub(crate) peer: &'a Peer,
    /// The inner Ethernet addresses.
    pub(crate) link: [u8; 12],
    pub(crate) ttl: u32,
}
