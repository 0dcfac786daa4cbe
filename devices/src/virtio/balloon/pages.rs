//! Page numbers into ranges: drivers name pages one by one, mostly in rising or falling order, and
//! a range costs one call.

use std::ops::Range;

/// Hands the pages that neighbour each other to `found` as one range of page numbers.
pub(super) fn runs(pages: impl IntoIterator<Item = u32>, mut found: impl FnMut(Range<u64>)) {
    let mut run = 0..0;
    for page in pages.into_iter().map(u64::from) {
        if run.end == page && !run.is_empty() {
            run.end = page + 1;
        } else if run.start == page + 1 && !run.is_empty() {
            run.start = page;
        } else {
            if !run.is_empty() {
                found(run);
            }
            run = page..page + 1;
        }
    }
    if !run.is_empty() {
        found(run);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(pages: &[u32]) -> Vec<Range<u64>> {
        let mut all = Vec::new();
        runs(pages.iter().copied(), |run| all.push(run));
        all
    }

    #[test]
    fn neighbours_are_one_range_in_either_order() {
        assert_eq!(of(&[5, 6, 7, 3, 2, 9]), [5..8, 2..4, 9..10]);
        assert_eq!(of(&[0, 1, 5]), [0..2, 5..6]);
        assert_eq!(of(&[1, 0, 5]), [0..2, 5..6]);
        assert_eq!(of(&[u32::MAX, 7]), [0xffff_ffff..0x1_0000_0000, 7..8]);
        assert!(of(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn every_page_is_in_exactly_the_ranges_that_it_was_named_for(
            pages in prop::collection::vec(0_u32..20, 0..40),
        ) {
            let mut named: Vec<u64> = pages.iter().copied().map(u64::from).collect();
            let mut found: Vec<u64> = of(&pages).into_iter().flatten().collect();
            named.sort_unstable();
            found.sort_unstable();
            prop_assert_eq!(named, found);
        }
    }
}
