//! Which of a device's queues runs on which io-thread (`iothread-vq-mapping`).
//!
//! ```text
//!   [{iothread: a}, {iothread: b}]                        0 a  1 b  2 a  3 b ..   in turns
//!   [{iothread: a, vqs: [0, 2]}, {iothread: b, vqs: [1]}] 0 a  1 b  2 a           as said
//! ```

use block::IoThread;
use qapi_schema::QmpError;
use qapi_schema::devices::IOThreadVirtQueueMapping;

use super::Plug;
use crate::device_tree::Claim;

/// The threads on which a device's queues run, in turns: those of `mapping`, or the one called
/// `iothread`, or the one that all share who name none.
///
/// # Errors
/// Both are given, a thread is not there, or the mapping is none of these queues.
pub(super) fn claim(
    plug: &mut Plug<'_>,
    iothread: Option<&str>,
    mapping: Option<&[IOThreadVirtQueueMapping]>,
    queues: u16,
) -> Result<Vec<IoThread>, QmpError> {
    let (places, names) = match (iothread, mapping) {
        (Some(_), Some(_)) => {
            return Err(QmpError::generic(
                "iothread and iothread-vq-mapping properties cannot be set at the same time",
            ));
        }
        (None, None) => return Ok(vec![plug.vm.default_iothread()?]),
        (Some(name), None) => (vec![0], vec![name]),
        (None, Some(mapping)) => {
            let names = mapping.iter().map(|entry| entry.iothread.as_str());
            (assign(mapping, queues)?, names.collect())
        }
    };
    let mut threads = Vec::new();
    for name in names {
        threads.push(plug.vm.objects.claim_iothread(name, &plug.name)?);
        plug.claim(Claim::Object(name.to_owned()));
    }
    let threads = places.into_iter().filter_map(|at| threads.get(at).cloned());
    Ok(threads.collect())
}

/// The entry of `mapping` for each queue, in turns.
fn assign(mapping: &[IOThreadVirtQueueMapping], queues: u16) -> Result<Vec<usize>, QmpError> {
    let refused = |why: String| Err(QmpError::generic(why));
    if mapping.is_empty() {
        return refused("iothread-vq-mapping must name at least one iothread".to_owned());
    }
    for (at, entry) in mapping.iter().enumerate() {
        let name = &entry.iothread;
        if mapping.iter().take(at).any(|other| other.iothread == *name) {
            return refused(format!(
                "duplicate IOThread name \"{name}\" in iothread-vq-mapping"
            ));
        }
        if entry.vqs.is_some() != mapping.iter().any(|other| other.vqs.is_some()) {
            return refused(
                "either all items in iothread-vq-mapping must have vqs or none of them must have it"
                    .to_owned(),
            );
        }
    }
    if mapping.iter().all(|entry| entry.vqs.is_none()) {
        return Ok((0..mapping.len()).collect());
    }
    let mut of_queue: Vec<Option<usize>> = vec![None; usize::from(queues)];
    for (at, entry) in mapping.iter().enumerate() {
        let name = &entry.iothread;
        for queue in entry.vqs.iter().flatten() {
            let Some(place) = of_queue.get_mut(usize::from(*queue)) else {
                return refused(format!(
                    "vq index {queue} for IOThread \"{name}\" must be less than num_queues {queues} \
                     in iothread-vq-mapping"
                ));
            };
            if place.replace(at).is_some() {
                return refused(format!(
                    "cannot assign vq {queue} to IOThread \"{name}\" because it is already assigned"
                ));
            }
        }
    }
    if let Some(queue) = of_queue.iter().position(Option::is_none) {
        return refused(format!(
            "missing vq {queue} IOThread assignment in iothread-vq-mapping"
        ));
    }
    Ok(of_queue.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(mapping: &[(&str, Option<&[u16]>)], queues: u16) -> Result<Vec<usize>, String> {
        let entry = |(name, vqs): &(&str, Option<&[u16]>)| IOThreadVirtQueueMapping {
            iothread: (*name).to_owned(),
            vqs: vqs.map(<[u16]>::to_vec),
        };
        let mapping: Vec<_> = mapping.iter().map(entry).collect();
        assign(&mapping, queues).map_err(|error| error.desc)
    }

    #[test]
    fn threads_take_turns_or_get_the_queues_that_are_said() {
        assert_eq!(assigned(&[("a", None), ("b", None)], 4), Ok(vec![0, 1]));
        let said = [("a", Some(&[0, 3][..])), ("b", Some(&[2, 1][..]))];
        assert_eq!(assigned(&said, 4), Ok(vec![0, 1, 1, 0]));
    }

    #[test]
    fn a_mapping_that_is_none_of_the_queues_is_refused() {
        for (mapping, wanted) in [
            (&[][..], "at least one"),
            (&[("a", None), ("a", None)], "duplicate IOThread name \"a\""),
            (&[("a", None), ("b", Some(&[0][..]))], "either all items"),
            (&[("a", Some(&[0, 1, 2]))], "vq index 2 for IOThread \"a\""),
            (
                &[("a", Some(&[0, 1])), ("b", Some(&[1]))],
                "cannot assign vq 1 to IOThread \"b\"",
            ),
            (&[("a", Some(&[1]))], "missing vq 0"),
        ] {
            let refused = assigned(mapping, 2).expect_err(wanted);
            assert!(refused.contains(wanted), "{refused}");
        }
    }
}
