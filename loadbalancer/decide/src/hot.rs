//! When a server is hot: its active flows per weight stand out from those of its peers.
//!
//! A server above a threshold gets new flows only if the second choice is hot as well. The threshold is the smaller of the
//! 84th percentile of all servers' active flows per weight (one standard deviation above the mean of a normal
//! distribution) and 1.25 times their common load, the bound of "Consistent Hashing with Bounded Loads" (Mirrokni, Thorup
//! and Zadimoghaddam, SODA 2018) for a quarter of slack.

/// Share of servers that are below the percentile.
const PERCENTILE: f64 = 0.84;
/// Load above the common one that is still not hot.
const SLACK: f64 = 1.25;
/// Nothing stands out among so few flows: the standard deviation of a Poisson count of 16 is 4, a quarter of it.
const FEW: u32 = 16;

/// A server that may get new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub active: u32,
    /// Above zero.
    pub weight: u32,
}

/// From how many active flows on each server is hot, in the order of the loads.
pub fn marks(loads: &[Load]) -> Vec<u32> {
    let active: u64 = loads.iter().map(|load| u64::from(load.active)).sum();
    let weight: u64 = loads.iter().map(|load| u64::from(load.weight)).sum();
    if loads.len() < 2 || weight == 0 {
        return vec![u32::MAX; loads.len()];
    }
    let mut ratios: Vec<f64> = loads.iter().map(|load| f64::from(load.active) / f64::from(load.weight)).collect();
    ratios.sort_by(f64::total_cmp);
    let percentile = ratios[((ratios.len() - 1) as f64 * PERCENTILE).round() as usize];
    let theta = percentile.min(SLACK * active as f64 / weight as f64);
    loads.iter().map(|load| ((theta * f64::from(load.weight)) as u32).saturating_add(1).max(FEW)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(active: u32, weight: u32) -> Load {
        Load { active, weight }
    }

    #[test]
    fn a_server_that_stands_out_is_hot_and_equal_ones_are_not() {
        let loads = [load(400, 1), load(100, 1), load(100, 1), load(100, 1)];
        let marks = marks(&loads);
        assert!(marks[0] <= 400, "{marks:?}");
        assert!(marks[1..].iter().all(|mark| *mark > 100), "{marks:?}");
    }

    #[test]
    fn marks_follow_weights() {
        let marks = marks(&[load(100, 1), load(200, 2), load(400, 4)]);
        assert_eq!(marks, [101, 201, 401]);
    }

    #[test]
    fn with_few_flows_or_without_peers_nobody_is_hot() {
        assert_eq!(marks(&[load(5, 1), load(0, 1)]), [FEW, FEW]);
        assert_eq!(marks(&[load(50_000, 1)]), [u32::MAX]);
        assert_eq!(marks(&[]), Vec::<u32>::new());
    }
}
