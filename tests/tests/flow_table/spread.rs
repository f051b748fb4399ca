//! Spread.
