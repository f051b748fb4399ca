//! The frames that are sent.

use super::{
    super::test_run::{EDGE_MAC, SENDER_MAC},
    case::{Case, Direction},
};
use anyhow::{Result, bail};
use bg_common::{FrameTemplate, Protocol};
use etherparse::PacketBuilder;
use std::net::{IpAddr, SocketAddr};

/// A range of flow numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flows {
    pub(super) first: u32,
    /// A power of two.
    pub(super) count: u32,
}

impl Flows {
    pub(super) fn first(count: u32) -> Self {
        Self { first: 0, count }
    }

    /// The next range of the same size.
    pub(super) fn next(self) -> Self {
        Self { first: self.first + self.count, ..self }
    }
}

/// The order of flows.
#[derive(Clone, Copy)]
pub(super) enum Order {
    Linear,
    /// Each flow once per period, in an order that no prefetcher can predict.
    Random,
    /// The same, but in another order.
    OtherRandom,
}

impl Order {
    /// The multiplier and increment of a linear congruence with a full period modulo any power of two.
    fn generator(self) -> (u32, u32) {
        match self {
            Self::Linear => (1, 1),
            // Numerical Recipes' generator.
            Self::Random => (1_664_525, 1_013_904_223),
            // Borland's.
            Self::OtherRandom => (22_695_477, 1),
        }
    }
}

/// A segment of a TCP connection. Datagrams are all alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// The client's SYN, or the backend's SYN and ACK.
    Opening,
    /// A segment of an established connection.
    Data,
    /// RST, which ends it at once.
    Reset,
}

/// The sequence numbers of the client's and of the backend's SYN.
const SYNS: [u32; 2] = [1000, 5000];

/// The frames of a case's flows in one direction.
pub(super) fn template(
    case: &Case,
    direction: Direction,
    segment: Segment,
    flows: Flows,
    order: Order,
) -> Result<FrameTemplate> {
    let client = SocketAddr::new(case.client, FrameTemplate::FIRST_PORT);
    let is_reply = direction == Direction::Reply;
    let (from, to) = if is_reply { (case.backend, client) } else { (client, case.vip) };
    let builder = PacketBuilder::ethernet2(SENDER_MAC, EDGE_MAC);
    let (builder, addresses_at, address_len, l4, address) = match (from.ip(), to.ip(), case.client) {
        (IpAddr::V4(from), IpAddr::V4(to), IpAddr::V4(client)) => {
            (builder.ipv4(from.octets(), to.octets(), 64), 14 + 12, 4, 14 + 20, u32::from(client))
        }
        (IpAddr::V6(from), IpAddr::V6(to), IpAddr::V6(client)) => {
            (builder.ipv6(from.octets(), to.octets(), 64), 14 + 8, 16, 14 + 40, u128::from(client) as u32)
        }
        _ => bail!("mixed families"),
    };
    let mut bytes = Vec::new();
    match case.protocol {
        Protocol::Tcp => {
            let [own, other] = if is_reply { [SYNS[1], SYNS[0]] } else { SYNS };
            let tcp = |sequence| builder.tcp(from.port(), to.port(), sequence, 1024);
            let tcp = match (segment, direction) {
                (Segment::Opening, Direction::Forward) => tcp(own).syn(),
                (Segment::Opening, Direction::Reply) => tcp(own).syn().ack(other + 1),
                (Segment::Data, _) => tcp(own + 1).ack(other + 1),
                (Segment::Reset, _) => tcp(own + 1).rst(),
            };
            tcp.write(&mut bytes, &vec![0; FrameTemplate::LEN - l4 - 20])?;
        }
        Protocol::Udp => {
            builder.udp(from.port(), to.port()).write(&mut bytes, &vec![0; FrameTemplate::LEN - l4 - 8])?;
        }
    }
    let (multiplier, increment) = order.generator();
    Ok(FrameTemplate {
        frame: bytemuck::pod_read_unaligned(&bytes),
        // The client's end: the destination of a reply.
        address_at: (addresses_at + if is_reply { 2 * address_len } else { address_len } - 4) as u32,
        port_at: (l4 + if is_reply { 2 } else { 0 }) as u32,
        address,
        first: flows.first,
        mask: flows.count - 1,
        multiplier,
        increment,
        next: 0,
    })
}

/// The same frame with another EtherType. The varying words of the header are at the same offsets.
pub(super) fn of_type(template: &FrameTemplate, ether_type: u16) -> FrameTemplate {
    let mut changed = *template;
    let bytes: &mut [u8] = bytemuck::bytes_of_mut(&mut changed.frame);
    bytes[12..14].copy_from_slice(&ether_type.to_be_bytes());
    changed
}

/// The same IPv4 frame with a VLAN tag, cut to the same length.
pub(super) fn tagged(template: &FrameTemplate) -> FrameTemplate {
    let mut bytes = bytemuck::bytes_of(&template.frame).to_vec();
    bytes.splice(12..12, [0x81, 0x00, 0x00, 0x2a]);
    bytes.truncate(FrameTemplate::LEN);
    // The IP packet is as long as its frame still has room for.
    let ip_len = (FrameTemplate::LEN - 18) as u16;
    bytes[20..22].copy_from_slice(&ip_len.to_be_bytes());
    FrameTemplate {
        frame: bytemuck::pod_read_unaligned(&bytes),
        address_at: template.address_at + 4,
        port_at: template.port_at + 4,
        ..*template
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_order_meets_each_flow_once_a_period() {
        let case = Case::ipv4(Protocol::Udp).unwrap();
        for order in [Order::Linear, Order::Random, Order::OtherRandom] {
            let flows = Flows::first(4096);
            let of = template(&case, Direction::Forward, Segment::Data, flows, order).unwrap();
            let mut number = 0_u32;
            let met: HashSet<_> = (0..flows.count)
                .map(|_| {
                    number = number.wrapping_mul(of.multiplier).wrapping_add(of.increment) & of.mask;
                    number
                })
                .collect();
            assert_eq!(met.len() as u32, flows.count);
        }
    }

    #[test]
    fn what_varies_is_the_clients_end() {
        for case in Case::both_families().unwrap() {
            let client = match case.client {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets()[12..].to_vec(),
            };
            for direction in [Direction::Forward, Direction::Reply] {
                let of = template(&case, direction, Segment::Data, Flows::first(1), Order::Linear).unwrap();
                let bytes = bytemuck::bytes_of(&of.frame);
                assert_eq!(bytes[of.address_at as usize..][..4], client);
                assert_eq!(bytes[of.port_at as usize..][..2], FrameTemplate::FIRST_PORT.to_be_bytes());
            }
        }
    }
}
