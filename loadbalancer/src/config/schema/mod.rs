//! What a configuration can say, and how it is read: tables are lists of keys, every value has its place, every error has
//! its line and its fix.

pub(in crate::config) mod table;
pub(in crate::config) mod walk;
pub(in crate::config) mod value;
mod units;
pub(in crate::config) mod files;
pub(in crate::config) mod error;
pub(in crate::config) mod about;
pub(in crate::config) mod example;
pub(in crate::config) mod reference;
pub(in crate::config) mod json;
