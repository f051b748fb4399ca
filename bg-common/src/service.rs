//! Services: the virtual addresses that packets' destinations are matched against, and their data.

use crate::{Addr, Be16};
use bytemuck::{Pod, Zeroable};

/// A virtual address: the key of the `services` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct ServiceKey {
    /// The address to which clients send.
    pub addr: Addr,
    /// The port to which clients send.
    pub port: Be16,
    /// [`crate::Protocol`].
    pub protocol: u8,
    /// [`crate::Family`].
    pub family: u8,
}

/// A row of the `vips` array: a virtual address, by `2 * service + role`. It is the source of replies.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Vip {
    /// The address. If it is zero, there is none.
    pub key: ServiceKey,
    /// The number of the next row with the same hash in `vip_index`, plus one. Zero ends the list.
    pub next: u32,
    /// A part of the hash of the service's flows, so that a client that uses one port for many services does not fill
    /// a bucket. Services that share a backend's address, port and protocol have the same salt if
    /// possible, because only its source is known of a reply.
    pub salt: u16,
    /// 1 if datagrams to this address are copied to the idle colour.
    pub is_mirrored: u16,
    /// Always zero.
    pub reserved: [u16; 2],
}

/// The role of a [`ServiceKey`] among the two addresses of a service.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The VIP. Its new flows follow the live word.
    Vip = 0,
    /// The preview address. Its new flows always go to the idle colour.
    Preview = 1,
}

/// A Maglev table: `len` entries of the `maglev` array from `base` on. An entry is a backend's slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TableSpan {
    /// The first entry.
    pub base: u32,
    /// The number of entries, a prime. It is never zero in a published row.
    pub len: u32,
}

/// The value of the `services` map. It is replaced as a whole, because an update of a hash map is atomic to its readers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ServiceRow {
    /// Index of the service, below [`crate::MAX_SERVICES`]. Its rows of the `vips` array are
    /// `2 * service` (VIP) and `2 * service + 1` (preview), those of `traffic` are
    /// `2 * service + colour`.
    pub service: u16,
    /// Index of its deployment, which is its row in `live`, `terms` and `deployments`.
    pub deployment: u16,
    /// [`Role`].
    pub role: u8,
    /// 1 if the deployment has tester prefixes. Otherwise packets need not look them up.
    pub has_testers: u8,
    /// Always zero.
    pub reserved: u16,
    /// The tables of the colours, by [`crate::Colour`].
    pub tables: [TableSpan; 2],
}

/// The settings of a deployment: those that the data path reads, and those that user space has to read back.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DeploymentRow {
    /// Name as in the configuration, UTF-8, padded with zeros.
    pub name: [u8; 64],
    /// Ticks after which a silent TCP flow times out.
    pub tcp_idle: u32,
    /// The same for a TCP flow whose handshake is not complete.
    pub tcp_opening: u32,
    /// The same for UDP.
    pub udp_idle: u32,
    /// 1 while the row holds a deployment.
    pub in_use: u8,
    /// What a switch does to open flows by default: 0 drain, 1 cut.
    pub on_switch: u8,
    /// What a share of new flows divides, as configured: 0 flows, 1 clients.
    pub sticky: u8,
    /// The same as the last split has asked for: 0 as configured, 1 flows, 2 clients.
    pub split_by: u8,
    /// Milliseconds after which a drain ends the remaining flows; zero is never.
    pub drain_timeout_ms: u64,
    /// `tcp_idle_timeout` as configured, in milliseconds. Only user space reads it, because the data path uses the ticks.
    pub tcp_idle_ms: u64,
    /// The same for `udp_idle_timeout`.
    pub udp_idle_ms: u64,
    /// How many bits of a client's address count where clients are divided: of IPv4 and of IPv6.
    pub client_prefix: [u8; 2],
    /// While a switch is made, 1 or 2: packets that open a flow note when, in `receipts`. 1 if the new generation is even, 2 if it is odd.
    pub receipt: u8,
    /// Always zero.
    pub reserved: [u8; 5],
}

impl DeploymentRow {
    /// The value of [`receipt`](Self::receipt) for a switch that makes this generation.
    #[inline(always)]
    pub const fn receipt_of(generation: u32) -> u8 {
        1 + (generation & 1) as u8
    }

    /// Whether a share of new flows divides clients, so that all flows of a client go to one colour.
    #[inline(always)]
    pub const fn divides_clients(&self) -> bool {
        self.split_by == 2 || (self.split_by == 0 && self.sticky == 1)
    }
}

/// A row of the `service_info` array: what user space has to read back. The data path
/// does not read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ServiceInfo {
    /// Name as in the configuration, UTF-8, padded with zeros.
    pub name: [u8; 64],
    /// Index of its deployment.
    pub deployment: u16,
    /// 1 while the row holds a service.
    pub in_use: u8,
    /// [`crate::Mode`].
    pub mode: u8,
    /// 1 if the service has a preview address.
    pub has_preview: u8,
    /// [`crate::Mode::Tee`]: the version of the PROXY protocol with which a backend learns the client's address, or zero.
    pub proxy_protocol: u8,
    /// [`crate::Mode::Tee`]: 1 if the answers of both colours are compared.
    pub compares: u8,
    /// Always zero.
    pub reserved: u8,
    /// [`crate::Mode::Gue`]: the UDP port at which backends receive, in host order.
    pub gue_port: u16,
    /// The lengths of the prefixes `outer4` and `outer6`, plus one. Zero: none is configured.
    pub outer_len: [u8; 2],
    /// The IPv4 prefix that outer source addresses are taken from.
    pub outer4: [u8; 4],
    /// The same of IPv6.
    pub outer6: [u8; 16],
}

/// A key of the `testers` trie. The deployment is matched as a whole, the address by its prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TesterKey {
    /// Index of the deployment, in network order, so that the trie compares it first.
    pub deployment: u32,
    /// [`crate::Family`] as a number in network order. It keeps `0.0.0.0/0` from matching IPv6.
    pub family: u32,
    /// The client's address.
    pub addr: Addr,
}

impl TesterKey {
    /// The bits before the address, which count in the prefix length.
    pub const PREFIX_BITS: u32 = 64;
}

crate::assert_layout!(ServiceKey, size 20, align 4, addr at 0, port at 16, protocol at 18, family at 19);
crate::assert_layout!(Vip, size 32, align 8, key at 0, next at 20, salt at 24, is_mirrored at 26, reserved at 28);
crate::assert_layout!(TableSpan, size 8, align 4, base at 0, len at 4);
crate::assert_layout!(
    ServiceRow, size 24, align 4,
    service at 0, deployment at 2, role at 4, has_testers at 5, reserved at 6, tables at 8
);
crate::assert_layout!(
    DeploymentRow, size 112, align 8,
    name at 0, tcp_idle at 64, tcp_opening at 68, udp_idle at 72, in_use at 76, on_switch at 77, sticky at 78,
    split_by at 79, drain_timeout_ms at 80, tcp_idle_ms at 88, udp_idle_ms at 96, client_prefix at 104, receipt at 106, reserved at 107
);
crate::assert_layout!(
    ServiceInfo, size 96, align 2,
    name at 0, deployment at 64, in_use at 66, mode at 67, has_preview at 68, proxy_protocol at 69, compares at 70, reserved at 71,
    gue_port at 72, outer_len at 74, outer4 at 76, outer6 at 80
);
crate::assert_layout!(TesterKey, size 24, align 4, deployment at 0, family at 4, addr at 8);
