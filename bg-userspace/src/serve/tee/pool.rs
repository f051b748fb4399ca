//! The backends of a colour, and which of them gets the next connection.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{net::TcpStream, time::timeout};

use crate::teed::TeedBackend;

/// The backends of a colour. It is replaced as a whole when one of them changes.
#[derive(Debug)]
pub(super) struct Pool {
    /// Address and weight of those that get new connections.
    choices: Vec<(SocketAddr, u64)>,
    next: AtomicU64,
}

impl Pool {
    /// Backends that are down get nothing, unless all of them are: a check may be wrong, and a client that is refused for sure is worse off.
    pub(super) fn new(backends: &[TeedBackend]) -> Self {
        let with_weight = || backends.iter().filter(|backend| backend.weight > 0);
        let all_down = with_weight().all(|backend| backend.is_down);
        let choices = with_weight().filter(|backend| all_down || !backend.is_down);
        let choices = choices.map(|backend| (backend.address, u64::from(backend.weight))).collect();
        Self { choices, next: AtomicU64::new(0) }
    }

    /// The backends in the order in which the next connection tries them. Over time, each is the first in proportion to its weight.
    fn order(&self) -> Vec<SocketAddr> {
        let mut rest = self.choices.clone();
        // Multiples of the golden ratio are spread evenly, however few they are.
        let point = self.next.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let mut order = Vec::with_capacity(rest.len());
        while !rest.is_empty() {
            let total: u64 = rest.iter().map(|(_, weight)| weight).sum();
            let mut at = (point * total) >> 32;
            let chosen = rest.iter().position(|(_, weight)| match at.checked_sub(*weight) {
                Some(left) => {
                    at = left;
                    false
                }
                None => true,
            });
            order.push(rest.swap_remove(chosen.unwrap_or(0)).0);
        }
        order
    }

    /// Connects to a backend, within this time for each of at most three.
    pub(super) async fn connect(&self, patience: Duration) -> Option<(TcpStream, SocketAddr)> {
        const TRIED: usize = 3;
        for address in self.order().into_iter().take(TRIED) {
            if let Ok(Ok(stream)) = timeout(patience, TcpStream::connect(address)).await {
                // Only a hint to the kernel.
                let _ = stream.set_nodelay(true);
                return Some((stream, address));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn backend(port: u16, weight: u32, is_down: bool) -> TeedBackend {
        TeedBackend { address: ([127, 0, 0, 1], port).into(), weight, is_down }
    }

    fn shares(backends: &[TeedBackend]) -> HashMap<u16, u32> {
        let pool = Pool::new(backends);
        let mut first = HashMap::new();
        for _ in 0..1000 {
            let order = pool.order();
            *first.entry(order.first().map_or(0, SocketAddr::port)).or_default() += 1;
        }
        first
    }

    #[test]
    fn connections_are_spread_by_weight_and_health() {
        let shares_of_three = shares(&[backend(1, 1, false), backend(2, 3, false), backend(3, 0, false)]);
        assert!(shares_of_three[&1].abs_diff(250) < 5 && shares_of_three[&1] + shares_of_three[&2] == 1000);
        assert_eq!(shares(&[backend(1, 1, true), backend(2, 3, false)]), HashMap::from([(2, 1000)]));
        assert_eq!(shares(&[backend(1, 1, true), backend(2, 1, true)]).len(), 2, "all are down");
        assert_eq!(shares(&[]), HashMap::from([(0, 1000)]));
        let mut order = Pool::new(&[backend(1, 1, false), backend(2, 9, false)]).order();
        order.sort();
        assert_eq!(order.len(), 2, "each is tried once");
    }

    #[tokio::test]
    async fn one_that_refuses_is_passed_over() {
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let at = open.local_addr().unwrap();
        let backends = [(closed, 9), (at, 1)].map(|(address, weight)| TeedBackend { address, weight, is_down: false });
        let pool = Pool::new(&backends);
        for _ in 0..20 {
            assert_eq!(pool.connect(Duration::from_secs(1)).await.unwrap().1, at);
        }
        assert!(Pool::new(&[]).connect(Duration::from_secs(1)).await.is_none());
    }
}
