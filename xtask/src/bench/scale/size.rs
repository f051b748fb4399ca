//! Configurations of any size. The edge has routes to all backends.

use super::super::edge::DEPLOYMENT;
use bg_common::{Colour, MAX_BACKENDS, MAX_SERVICES};
use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
};

/// A number of services, and of backends of each colour of each service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) services: u32,
    pub(super) backends: u32,
}

/// The networks of the backends, by colour, with 20 bits each.
pub(super) const NETWORKS: [&str; 2] = ["10.16.0.0/12", "10.32.0.0/12"];
const FIRST: [u32; 2] = [u32::from_be_bytes([10, 16, 0, 1]), u32::from_be_bytes([10, 32, 0, 1])];
/// An address that no configuration has, for the backend that is changed.
const SPARE: u32 = 1 << 19;
/// The VIP's port of the first service.
const FIRST_PORT: u32 = 10_000;

impl Size {
    /// The number of backends of both colours, with room to replace those of one service while they are in use.
    pub(super) fn all_backends(self) -> u32 {
        (2 * self.services + 1).saturating_mul(self.backends)
    }

    /// Whether an instance can have room for it.
    pub(super) fn fits(self) -> bool {
        self.all_backends() <= MAX_BACKENDS && self.services <= MAX_SERVICES
    }

    /// The VIP of the service in the middle, which is changed and gets packets.
    pub(super) fn vip(self) -> SocketAddrV4 {
        Self::vip_of(self.services / 2)
    }

    fn vip_of(service: u32) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 10), (FIRST_PORT + service) as u16)
    }

    /// The configuration. `change` is how often the first backend of each colour of the middle service was replaced.
    pub(super) fn config(self, change: u32) -> String {
        // What is written to a string is written.
        let mut text = format!("[deployments.{DEPLOYMENT}]\n");
        for service in 0..self.services {
            let vip = Self::vip_of(service);
            let _ = write!(text, "[[deployments.{DEPLOYMENT}.services]]\nvip = \"{vip}\"\n");
            text += "protocol = \"tcp\"\nmode = \"nat\"\n";
            for colour in Colour::ALL {
                let _ = write!(text, "{} = [", colour.name());
                for number in 0..self.backends {
                    let mut place = service * self.backends + number;
                    if service == self.services / 2 && number == 0 && colour == Colour::Blue && change > 0 {
                        place = SPARE + change;
                    }
                    let _ = write!(text, "\"{}:8443\",", Ipv4Addr::from(FIRST[colour as usize] + place));
                }
                text += "]\n";
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn backends(config: &str) -> HashSet<&str> {
        config.split('"').filter(|word| word.ends_with(":8443")).collect()
    }

    #[test]
    fn a_change_replaces_one_backend() {
        let size = Size { services: 7, backends: 3 };
        let configs = [size.config(0), size.config(1), size.config(2)];
        let [before, after, later] = configs.each_ref().map(|config| backends(config));
        assert_eq!((before.len(), after.len()), (42, 42));
        assert_eq!((before.difference(&after).count(), after.difference(&before).count()), (1, 1));
        assert_eq!(after.difference(&later).count(), 1);
    }

    #[test]
    fn what_is_too_much_for_an_instance_is_known() {
        let fits = |services, backends| Size { services, backends }.fits();
        assert!(fits(10_000, 10) && fits(1000, 100) && fits(100, 1000) && fits(1, 1));
        assert!(!fits(10_000, 100) && !fits(1000, 1000) && !fits(20_000, 1));
    }
}
