//! Arguments of exported functions, which have five registers and nothing else: what is packed into one has one encoding.

/// Two halves of a word, the upper one first.
#[derive(Clone, Copy)]
pub struct Pair(pub u16, pub u16);

impl Pair {
    #[inline(always)]
    pub fn to_bits(self) -> u32 {
        (self.0 as u32) << 16 | self.1 as u32
    }

    #[inline(always)]
    pub fn from_bits(bits: u32) -> Self {
        Self((bits >> 16) as u16, bits as u16)
    }
}
