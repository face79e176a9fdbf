//! A point's name in a replica's files: all that is known of it. Pure.

use throughline_cutover::{Point, ReplicaId};
use throughline_hypervisor::PointName;

/// How much of a replica's id is in it: enough that no other's point at the same host is taken for its own.
const TAG: usize = 8;

fn tag(id: &ReplicaId) -> String {
    id.as_str().chars().filter(char::is_ascii_alphanumeric).take(TAG).collect()
}

/// What a point of a replica is called.
pub(super) fn name(id: &ReplicaId, point: &Point) -> PointName {
    let how = if point.quiesced { 'q' } else { 'c' };
    let name = format!("p{}-{}-{how}-{}", point.number, point.at_ms, tag(id));
    name.parse().expect("letters, digits and hyphens, and not many")
}

/// The point of that name; `None`: it is not one of this replica's.
pub(super) fn read(id: &ReplicaId, name: &PointName) -> Option<Point> {
    let name = name.to_string();
    let mut parts = name.strip_prefix('p')?.split('-');
    let (number, at_ms) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let quiesced = match parts.next()? {
        "q" => true,
        "c" => false,
        _ => return None,
    };
    let is_its = parts.next()? == tag(id) && parts.next().is_none() && number > 0;
    is_its.then_some(Point { number, at_ms, quiesced })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_all_of_its_point_and_is_its_replicas_alone() {
        let id: ReplicaId = "5f1c7a52-0c3d-4c8e-9a57-2f0e8f0a9a11".parse().unwrap();
        for point in [
            Point { number: 1, at_ms: 1_764_498_884_123, quiesced: false },
            Point { number: u64::MAX, at_ms: u64::MAX, quiesced: true },
        ] {
            assert_eq!(read(&id, &name(&id, &point)), Some(point));
        }
        let other = "5f1c7a53-0c3d-4c8e-9a57-2f0e8f0a9a11".parse().unwrap();
        assert_eq!(name(&id, &Point { number: 3, at_ms: 7, quiesced: true }).to_string(), "p3-7-q-5f1c7a52");
        for strange in
            ["p3-7-q-5f1c7a53", "p0-7-q-5f1c7a52", "p3-7-x-5f1c7a52", "p3-7-q", "p3-7-q-5f1c7a52-1", "by-hand"]
        {
            assert_eq!(read(&id, &strange.parse().unwrap()), None, "{strange}");
        }
        assert_eq!(read(&other, &"p3-7-q-5f1c7a53".parse().unwrap()).map(|it| it.number), Some(3));
    }
}
