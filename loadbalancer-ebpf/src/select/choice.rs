//! What choosing a server gives: a backend, or why there is none.

use loadbalancer_common::outcome::Outcome;

/// One word, so that it comes back from a subprogram in a register: in the upper half zero, or one more than an outcome.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Choice(u32);

impl Choice {
    #[inline(always)]
    pub fn backend(id: u16) -> Self {
        Self(id as u32)
    }

    /// `why`: one of those that [`Self::get`] knows.
    #[inline(always)]
    pub fn refused(why: Outcome) -> Self {
        Self((why as u32 + 1) << 16)
    }

    #[inline(always)]
    pub fn to_bits(self) -> u32 {
        self.0
    }

    #[inline(always)]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    #[inline(always)]
    pub fn get(self) -> Result<u16, Outcome> {
        let is = |why: Outcome| self.0 == Self::refused(why).0;
        if self.0 >> 16 == 0 {
            Ok(self.0 as u16)
        } else if is(Outcome::NoServer) {
            Err(Outcome::NoServer)
        } else if is(Outcome::Full) {
            Err(Outcome::Full)
        } else if is(Outcome::UnknownFlow) {
            Err(Outcome::UnknownFlow)
        } else if is(Outcome::ServerGone) {
            Err(Outcome::ServerGone)
        } else if is(Outcome::PortsExhausted) {
            Err(Outcome::PortsExhausted)
        } else {
            Err(Outcome::Internal)
        }
    }
}
