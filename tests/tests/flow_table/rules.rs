//! Who gives way.
