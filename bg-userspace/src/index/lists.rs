//! Lists of rows, and the two kinds of rows in them.

use bg_common::{Addr, Backend, Be16, ServiceKey, Vip, endpoint_hash};
use bytemuck::Pod;

/// A row that can be in a list.
pub(crate) trait Listed: Pod {
    /// What packets compare.
    type Identity: PartialEq;
    /// What packets compare of this row.
    fn identity(&self) -> Self::Identity;
    /// The hash that selects the list.
    fn hash(&self) -> u32;
    /// The link to the next row.
    fn next(&self) -> u32;
    /// The link to the next row, mutable.
    fn next_mut(&mut self) -> &mut u32;
}

impl Listed for Vip {
    type Identity = ServiceKey;

    fn identity(&self) -> ServiceKey {
        self.key
    }

    fn hash(&self) -> u32 {
        endpoint_hash(&self.key.addr, self.key.port, self.key.protocol)
    }

    fn next(&self) -> u32 {
        self.next
    }

    fn next_mut(&mut self) -> &mut u32 {
        &mut self.next
    }
}

/// What a packet's source is compared with, and the salt with which its flow is looked for: of backends that have the same,
/// one is linked.
pub(crate) type Endpoint = (Addr, Be16, u8, u8, u16);

/// The endpoint of a backend.
pub(crate) const fn endpoint(backend: &Backend) -> Endpoint {
    (backend.addr, backend.port, backend.family, backend.protocol, backend.salt)
}

impl Listed for Backend {
    type Identity = Endpoint;

    fn identity(&self) -> Endpoint {
        endpoint(self)
    }

    fn hash(&self) -> u32 {
        endpoint_hash(&self.addr, self.port, self.protocol)
    }

    fn next(&self) -> u32 {
        self.next
    }

    fn next_mut(&mut self) -> &mut u32 {
        &mut self.next
    }
}

/// A link to a row.
pub(super) const fn link(row: usize) -> u32 {
    row as u32 + 1
}

/// Memory with heads, whose number is a power of two, and the rows of their lists. Each store becomes visible as a whole, and in order.
pub(crate) trait Lists {
    /// A row.
    type Row: Listed;
    /// Number of heads.
    fn heads(&self) -> usize;
    /// The link to the first row of a list.
    fn head(&self, head: usize) -> u32;
    /// Stores the link to the first row of a list.
    fn set_head(&self, head: usize, link: u32);
    /// Number of rows.
    fn rows(&self) -> usize;
    /// A row.
    fn row(&self, row: usize) -> Self::Row;
    /// Stores a row's link.
    fn set_next(&self, row: usize, link: u32);

    /// The rows of a list. A damaged list ends where a link is invalid or closes a circle.
    fn list(&self, head: usize) -> impl Iterator<Item = usize> {
        let row_of = |link: u32| (link as usize).checked_sub(1).filter(|row| *row < self.rows());
        std::iter::successors(row_of(self.head(head)), move |row| row_of(self.row(*row).next())).take(self.rows())
    }
}
