//! Who things are: one type for each kind of thing.

/// A service in the kernel, as a hash of what it is in the configuration: the same in every build and on every machine.
/// One configured service is two of them if its packets keep their family and it listens on both. Never zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u64);

/// A server of a service in the kernel, unique in its service. Never zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub u64);

/// A server of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId {
    pub service: ServiceId,
    pub backend: BackendId,
}

impl ServiceId {
    /// What stands for some words.
    pub fn of(words: &[&[u8]]) -> Self {
        Self(stable_hash(words))
    }
}

impl BackendId {
    /// What stands for some words.
    pub fn of(words: &[&[u8]]) -> Self {
        Self(stable_hash(words))
    }
}

impl ServerId {
    /// One of a service that has only numbers for its servers, as simulations and tests do.
    pub const fn numbered(number: u32) -> Self {
        Self { service: ServiceId(1), backend: BackendId(number as u64 + 1) }
    }
}

/// A number that stands for some words, the same in every build and on every machine (FNV-1a, 64 bits; Fowler, Noll and
/// Vo). Never zero.
pub fn stable_hash(words: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for word in words {
        // The length keeps words apart.
        for byte in (word.len() as u32).to_le_bytes().iter().chain(*word) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_apart_and_their_number_does_not_change() {
        assert_ne!(ServiceId::of(&[b"ab", b"c"]), ServiceId::of(&[b"a", b"bc"]));
        // Pinned state is recognised by it: another value would lose every flow at an update.
        assert_eq!(ServiceId::of(&[b"service", b"web", &[1, 0]]), ServiceId(0x830d4e03d3713307));
        assert_eq!(BackendId::of(&[b"responder"]), BackendId(0x591a46a99a00f22));
    }
}
