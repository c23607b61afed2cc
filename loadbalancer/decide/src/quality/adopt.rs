//! Weights that an earlier controller has left in the kernel, as a new one goes on with.
//!
//! ```text
//! factor = slots of the ring / load weight, scaled so that the sum of the weights is that of the configured ones
//! ```
//!
//! The load weight is the configured one with all that acts on it but the factor (slow start, the server's word), so the
//! factor is what is left. Where less of the configured one is left than of the peers', slow start begins anew; but not where an
//! agent may be the reason.

use super::group::SCALE;
use super::group::entry::{Adopted, Entry};

/// A server as it is found. All of a group together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Configured weight, or the operator's.
    pub nominal: u32,
    /// Its weight as the ring was built with; see [`super::group::ServerWeight::load_weight`].
    pub load: u32,
    /// Of the ring.
    pub slots: u32,
    /// New flows may go to it.
    pub accepts: bool,
    /// An agent speaks for it.
    pub has_agent: bool,
    /// They may not, although it is neither down nor drained, and there is a way to it.
    pub ejected: bool,
}

/// How the servers of a group come in.
pub fn entries(found: &[Found]) -> Vec<Entry> {
    let is_known = |it: &Found| it.accepts && it.slots > 0 && it.load > 0 && it.nominal > 0;
    let raw = |it: &Found| f64::from(it.slots) / f64::from(it.load);
    let sum = |weight: &dyn Fn(&Found) -> f64| found.iter().filter(|it| is_known(it)).map(weight).sum::<f64>();
    let scale = sum(&|it| f64::from(it.nominal)) / sum(&|it| f64::from(it.nominal) * raw(it));
    let left = |it: &Found| f64::from(it.load) / (SCALE * f64::from(it.nominal));
    let most = found.iter().filter(|it| is_known(it)).map(left).fold(0.0, f64::max);
    let entry = |it: &Found| {
        if is_known(it) {
            let starting = !it.has_agent && left(it) < 0.99 * most;
            Entry::Adopted(Adopted { factor: raw(it) * scale, starting, ejected: false })
        } else if it.ejected && !it.has_agent && it.nominal > 0 {
            Entry::Adopted(Adopted { factor: 1.0, starting: false, ejected: true })
        } else {
            Entry::Known
        }
    };
    found.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(nominal: u32, load: u32, slots: u32) -> Found {
        Found { nominal, load, slots, accepts: true, has_agent: false, ejected: false }
    }

    /// Factor, and whether slow start begins anew.
    type Wanted = (f64, bool);

    fn factors(servers: &[Found]) -> Vec<Wanted> {
        let factor = |entry| match entry {
            Entry::Adopted(it) => ((it.factor * 1_000.0).round() / 1_000.0, it.starting),
            other => panic!("{other:?}"),
        };
        entries(servers).into_iter().map(factor).collect()
    }

    #[test]
    fn a_share_is_the_factor_that_gives_it() {
        let said = |load| Found { has_agent: true, ..found(1, load, load / 10) };
        let cases: [(&str, &[Found], &[Wanted]); 6] = [
            ("as configured", &[found(1, 1_000, 100), found(3, 3_000, 300)], &[(1.0, false), (1.0, false)]),
            ("one is slow", &[found(1, 1_000, 50), found(1, 1_000, 150)], &[(0.5, false), (1.5, false)]),
            ("one starts", &[found(1, 500, 50), found(1, 1_000, 100)], &[(1.0, true), (1.0, false)]),
            ("all have less than is configured", &[found(2, 1_000, 50), found(2, 1_000, 50)], &[(1.0, false); 2]),
            ("agents say less", &[said(900), said(1_000)], &[(1.0, false); 2]),
            ("configured anew", &[found(2, 1_000, 100), found(1, 1_000, 100)], &[(1.0, true), (1.0, false)]),
        ];
        for (name, servers, wanted) in cases {
            assert_eq!(factors(servers), wanted, "{name}");
        }
    }

    #[test]
    fn who_does_not_serve_gives_no_factor_and_stays_out_if_it_was_ejected() {
        let down = Found { accepts: false, slots: 0, ..found(1, 1, 0) };
        let ejected = Found { ejected: true, ..down };
        let entries = entries(&[down, ejected, found(1, 1_000, 10), Found { nominal: 0, ..ejected }]);
        assert_eq!(entries[0], Entry::Known);
        assert_eq!(entries[1], Entry::Adopted(Adopted { factor: 1.0, starting: false, ejected: true }));
        assert_eq!(entries[2], Entry::Adopted(Adopted { factor: 1.0, starting: false, ejected: false }));
        assert_eq!(entries[3], Entry::Known);
        assert_eq!(super::entries(&[]), []);
    }
}
