//! Why the kernel's tables are not as they should be.

use super::super::error::MapError;

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(
        "no room for {what}: all {capacity} are in use\nhelp: raise `{key}` in [limits] and start anew with \
         `on_incompatible = \"replace\"`"
    )]
    Full { what: &'static str, capacity: u32, key: &'static str },
}
