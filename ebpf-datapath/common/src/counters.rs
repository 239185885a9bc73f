//! What programs count. Each CPU counts for itself; readers add up.

/// One list, so that none is forgotten where all are asked for or named.
macro_rules! reasons {
    ($($(#[doc = $words:literal])* $reason:ident = $number:literal $name:literal;)*) => {
        /// Why a packet was dropped. The numbers are part of the [`crate::ABI`].
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $words])* $reason = $number,)*
        }

        impl Reason {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$reason,)*];

            /// It in a word, as status and metrics have it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)*
                }
            }
        }
    };
}

reasons! {
    /// Encapsulated for us by somebody who is no peer.
    NoPeer = 0 "NoPeer";
    /// Encapsulated by a peer, but to another of this node's addresses, or on a tunnel that is not open with it.
    ForgedOuter = 1 "ForgedOuter";
    /// On the tunnel's device with a VNI that is not open.
    WrongVni = 2 "WrongVNI";
    /// Header of VXLAN or GENEVE not as this tunnel's.
    BadHeader = 3 "BadHeader";
    /// Encapsulated by a peer, but the inner source is none of its pods.
    ForgedInner = 4 "ForgedInner";
    /// Encapsulated by a peer, but for no pod of this node.
    NotHere = 5 "NotHere";
    /// The inner packet is cut off, or neither IPv4 nor IPv6; or a frame has two priority tags.
    Malformed = 6 "Malformed";
    /// A plain packet on the underlay with a pod's source, and no native lane with that pod's node.
    PlainPodSource = 7 "PlainPodSource";
    /// The same with a native lane, from another link-layer address than that node's.
    WrongLinkAddress = 8 "WrongLinkAddress";
    /// From a pod, with a source that is not the pod's, or that a priority tag hides.
    PodSource = 9 "PodSource";
    /// From a pod, to a node's tunnel port.
    TunnelPort = 10 "TunnelPort";
    /// Congestion was marked on an outer header whose inner one cannot say so (RFC 6040, section 4.2).
    EcnInvalid = 11 "ECNInvalid";
    /// No room for headers, or they could not be written.
    NoRoom = 12 "NoRoom";
    /// A probe with a wrong tag, or more of them than are answered.
    Probe = 13 "Probe";
    /// The way to the peer is not known, and there is no driver to fall back to.
    NoWay = 14 "NoWay";
}

/// How many reasons counters have room for; what is beyond [`Reason::ALL`] is reserved.
pub const REASONS: usize = 16;
const _: () = assert!(Reason::ALL.len() <= REASONS);

/// The slot of the native lane in counters by lane: behind the tunnels'.
pub const NATIVE_SLOT: u32 = crate::MAX_TUNNELS as u32;

/// The slot of what belongs to no lane.
pub const NO_LANE_SLOT: u32 = NATIVE_SLOT + 1;

/// How many slots counters by lane have.
pub const LANE_SLOTS: usize = crate::MAX_TUNNELS + 2;

/// One lane's counters, in the map `LANES` by slot. Bytes are inner packets' without their Ethernet header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCounters {
    /// Packets sent.
    pub sent_packets: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Of the packets sent, those that bypassed the stack.
    pub sent_bypassing: u64,
    /// Of the packets received, those that bypassed the stack.
    pub received_bypassing: u64,
    /// Packets dropped, by [`Reason`].
    pub dropped: [u64; REASONS],
}

/// One peer's counters, in the map `PEER_COUNTERS` by [`crate::Peer::index`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounters {
    /// Packets sent to it.
    pub sent_packets: u64,
    /// Bytes sent to it.
    pub sent_bytes: u64,
    /// Packets received from it.
    pub received_packets: u64,
    /// Bytes received from it.
    pub received_bytes: u64,
    /// Packets of its dropped, by [`Reason`].
    pub dropped: [u32; REASONS],
}
