//! The open connections of a listener: not more than some. If one too many comes, the one that has been idle for the longest time is closed, so that
//! clients that send nothing keep nobody else out.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

/// The open connections.
#[derive(Debug)]
pub(super) struct Pool {
    most: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    /// How many requests are being answered.
    busy: usize,
    idle_since: Instant,
    closed: Arc<Notify>,
}

/// The place of a connection.
#[derive(Clone, Debug)]
pub(super) struct Place(Arc<Held>);

#[derive(Debug)]
struct Held {
    pool: Arc<Pool>,
    id: u64,
    closed: Arc<Notify>,
}

/// As long as it lives, the connection is not idle.
#[derive(Debug)]
pub(super) struct Busy(Place);

impl Pool {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default() })
    }

    /// A place for one more connection; `None` if all others are being answered.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.connections.len() >= self.most {
            let idle = open.connections.iter().filter(|(_, connection)| connection.busy == 0);
            let id = *idle.min_by_key(|(_, connection)| connection.idle_since)?.0;
            if let Some(connection) = open.connections.remove(&id) {
                connection.closed.notify_one();
            }
        }
        let (id, closed) = (open.next, Arc::new(Notify::new()));
        open.next += 1;
        open.connections.insert(id, Connection { busy: 0, idle_since: Instant::now(), closed: closed.clone() });
        Some(Place(Arc::new(Held { pool: self.clone(), id, closed })))
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Connection)) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have been closed to make room.
        if let Some(connection) = open.connections.get_mut(&id) {
            change(connection);
        }
    }
}

impl Place {
    /// Says that a request is being answered.
    pub(super) fn busy(&self) -> Busy {
        self.0.pool.change(self.0.id, |connection| connection.busy += 1);
        Busy(self.clone())
    }

    /// Returns when the connection has to make room for another one.
    pub(super) async fn closed(&self) {
        self.0.closed.notified().await;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let Held { pool, id, .. } = &*self.0.0;
        pool.change(*id, |connection| {
            connection.busy -= 1;
            connection.idle_since = Instant::now();
        });
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pool.open.lock().unwrap_or_else(PoisonError::into_inner).connections.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn an_idle_connection_makes_room_and_a_busy_one_does_not() {
        let pool = Pool::new(2);
        let (first, second) = (pool.admit().unwrap(), pool.admit().unwrap());
        let busy = first.busy();
        let third = pool.admit().unwrap();
        let is_closed = async |place: &Place| timeout(Duration::from_millis(10), place.closed()).await.is_ok();
        assert_eq!([is_closed(&first).await, is_closed(&second).await, is_closed(&third).await], [false, true, false]);
        let busy_too = third.busy();
        assert!(pool.admit().is_none(), "all are being answered");
        drop(busy);
        let fourth = pool.admit().unwrap();
        assert!(is_closed(&first).await);
        drop((busy_too, third, fourth, first, second));
        assert!(pool.open.lock().unwrap().connections.is_empty());
    }
}
