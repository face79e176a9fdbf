//! Replicas: what is asked for, what the two hosts are told, and the points there are.

use throughline_cutover::{
    End, Generation, Keeping, MOST_POINTS, Point, Promotion, ReplicaName, ReplicaToken, Replication, Rhythm, Sender,
    Terms,
    admission::{NewReplica, PromotionRequest},
};

use super::field::{InvalidField, Problem, parse, required, within};
use crate::{limits::LONGEST_ID, v1};

/// How often a point is begun if nobody says, milliseconds.
const USUAL_EVERY_MS: u32 = 60_000;
/// How many points are kept if nobody says.
const USUAL_KEEP: u32 = 3;

impl TryFrom<v1::CreateReplicaRequest> for NewReplica {
    type Error = InvalidField;
    fn try_from(request: v1::CreateReplicaRequest) -> Result<Self, InvalidField> {
        let name = replica_name(&request.guest, &request.host)?;
        let or = |value: u32, usual: u32| if value == 0 { usual } else { value };
        let every_ms = if request.target_lag_ms == 0 { or(request.every_ms, USUAL_EVERY_MS) } else { request.every_ms };
        let rhythm = rhythm(every_ms, request.target_lag_ms)?;
        let bandwidth = bandwidth(request.bandwidth)?;
        Ok(Self { name, terms: Terms { rhythm, keep: kept(or(request.keep, USUAL_KEEP))?, bandwidth } })
    }
}

impl TryFrom<v1::PromoteReplicaRequest> for PromotionRequest {
    type Error = InvalidField;
    fn try_from(request: v1::PromoteReplicaRequest) -> Result<Self, InvalidField> {
        let v1::PromoteReplicaRequest { guest, host, point, even_if_connected } = request;
        let point = (point != 0).then_some(point);
        Ok(Self { replica: replica_name(&guest, &host)?, point, even_if_connected })
    }
}

/// What a replica is found by, from a request's two fields.
///
/// # Errors
/// Which of them is no name.
pub fn replica_name(guest: &str, host: &str) -> Result<ReplicaName, InvalidField> {
    Ok(ReplicaName { guest: parse("guest", guest)?, host: parse("host", host)? })
}

/// From a message's two fields, of which one is not 0.
fn rhythm(every_ms: u32, target_lag_ms: u32) -> Result<Rhythm, InvalidField> {
    if target_lag_ms == 0 {
        within("every_ms", every_ms.into(), 1_000..=86_400_000, "milliseconds")?;
        return Ok(Rhythm::Every(every_ms));
    }
    if every_ms != 0 {
        let words = "cannot go with every_ms: points are begun on a schedule or for a target; leave one of them 0";
        return Err(InvalidField::new("target_lag_ms", Problem::Other(words.to_owned())));
    }
    within("target_lag_ms", target_lag_ms.into(), 2_000..=86_400_000, "milliseconds")?;
    Ok(Rhythm::Lag(target_lag_ms))
}

/// A message's `every_ms` and `target_lag_ms`.
pub fn rhythm_fields(rhythm: Rhythm) -> (u32, u32) {
    match rhythm {
        Rhythm::Every(every_ms) => (every_ms, 0),
        Rhythm::Lag(target_lag_ms) => (0, target_lag_ms),
    }
}

fn kept(keep: u32) -> Result<u32, InvalidField> {
    within("keep", keep.into(), 1..=MOST_POINTS.into(), "points a replica")?;
    Ok(keep)
}

fn bandwidth(bandwidth: u64) -> Result<u64, InvalidField> {
    if bandwidth != 0 {
        within("bandwidth", bandwidth, 1_048_576..=1 << 40, "bytes per second")?;
    }
    Ok(bandwidth)
}

fn generation(generation: u64) -> Result<Generation, InvalidField> {
    within("generation", generation, 1..=u64::MAX, "ownerships")?;
    Ok(Generation(generation))
}

fn token(token: String) -> Result<ReplicaToken, InvalidField> {
    within("token", token.len() as u64, 1..=LONGEST_ID as u64, "bytes")?;
    Ok(ReplicaToken::new(token))
}

impl TryFrom<v1::Point> for Point {
    type Error = InvalidField;
    fn try_from(point: v1::Point) -> Result<Self, InvalidField> {
        let v1::Point { number, at_ms, quiesced } = point;
        within("number", number, 1..=u64::MAX, "points")?;
        Ok(Self { number, at_ms, quiesced })
    }
}

impl From<Point> for v1::Point {
    fn from(point: Point) -> Self {
        let Point { number, at_ms, quiesced } = point;
        Self { number, at_ms, quiesced }
    }
}

/// Checks a replica's points: so many at most, the oldest first.
///
/// # Errors
/// Which of them is wrong, and why.
pub fn points(points: Vec<v1::Point>) -> Result<Vec<Point>, InvalidField> {
    within("points", points.len() as u64, 0..=MOST_POINTS.into(), "points a replica")?;
    let mut checked: Vec<Point> = Vec::with_capacity(points.len());
    for (at, point) in points.into_iter().enumerate() {
        let field = format!("points[{at}]");
        let point = Point::try_from(point).map_err(|e| e.within(&field))?;
        if checked.last().is_some_and(|before| before.number >= point.number) {
            let words = format!("is {} after a point that is no older; name each once, the oldest first", point.number);
            return Err(InvalidField::new(format!("{field}.number"), Problem::Other(words)));
        }
        checked.push(point);
    }
    Ok(checked)
}

impl TryFrom<v1::DesiredReplication> for Replication {
    type Error = InvalidField;
    fn try_from(desired: v1::DesiredReplication) -> Result<Self, InvalidField> {
        let v1::DesiredReplication { host, vtep, peer_endpoint, .. } = desired;
        Ok(Self {
            id: parse("id", &desired.id)?,
            guest: parse("guest", &desired.guest)?,
            generation: generation(desired.generation)?,
            keeper: End::try_from(v1::End { host, vtep, peer_endpoint })?,
            token: token(desired.token)?,
            rhythm: rhythm(desired.every_ms, desired.target_lag_ms)?,
            bandwidth: bandwidth(desired.bandwidth)?,
        })
    }
}

impl From<Replication> for v1::DesiredReplication {
    fn from(replication: Replication) -> Self {
        let v1::End { host, vtep, peer_endpoint } = replication.keeper.into();
        let (every_ms, target_lag_ms) = rhythm_fields(replication.rhythm);
        Self {
            id: replication.id.into(),
            guest: replication.guest.into(),
            generation: replication.generation.0,
            host,
            vtep,
            peer_endpoint,
            token: replication.token.as_str().to_owned(),
            every_ms,
            bandwidth: replication.bandwidth,
            target_lag_ms,
        }
    }
}

impl TryFrom<v1::DesiredReplica> for Keeping {
    type Error = InvalidField;
    fn try_from(desired: v1::DesiredReplica) -> Result<Self, InvalidField> {
        let vtep = match desired.source_vtep.as_str() {
            "" => None,
            vtep => Some(parse("source_vtep", vtep)?),
        };
        let source = match desired.source.as_str() {
            "" => None,
            host => Some(Sender { host: parse("source", host)?, vtep }),
        };
        Ok(Self {
            id: parse("id", &desired.id)?,
            spec: required("spec", desired.spec)?.try_into().map_err(|e: InvalidField| e.within("spec"))?,
            generation: generation(desired.generation)?,
            source,
            token: token(desired.token)?,
            keep: kept(desired.keep)?,
            test: desired.test.map(TryInto::try_into).transpose().map_err(|e: InvalidField| e.within("test"))?,
        })
    }
}

impl From<Keeping> for v1::DesiredReplica {
    fn from(keeping: Keeping) -> Self {
        let vtep = keeping.source.as_ref().and_then(|source| source.vtep);
        Self {
            id: keeping.id.into(),
            spec: Some(keeping.spec.into()),
            generation: keeping.generation.0,
            source: keeping.source.map(|source| source.host.into()).unwrap_or_default(),
            source_vtep: vtep.map(|vtep| vtep.to_string()).unwrap_or_default(),
            token: keeping.token.as_str().to_owned(),
            keep: keeping.keep,
            test: keeping.test.map(Into::into),
        }
    }
}

impl TryFrom<v1::Promotion> for Promotion {
    type Error = InvalidField;
    fn try_from(promotion: v1::Promotion) -> Result<Self, InvalidField> {
        within("point", promotion.point, 1..=u64::MAX, "points")?;
        Ok(Self { replica: parse("replica_id", &promotion.replica_id)?, point: promotion.point })
    }
}

impl From<Promotion> for v1::Promotion {
    fn from(promotion: Promotion) -> Self {
        Self { replica_id: promotion.replica.into(), point: promotion.point }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "5f1c7a52-0c3d-4c8e-9a57-2f0e8f0a9a11";

    fn request(change: impl FnOnce(&mut v1::CreateReplicaRequest)) -> Result<NewReplica, InvalidField> {
        let (guest, host) = ("db-1".to_owned(), "h2".to_owned());
        let mut request = v1::CreateReplicaRequest { guest, host, ..Default::default() };
        change(&mut request);
        request.try_into()
    }

    #[test]
    fn what_is_left_out_is_usual_and_what_is_wrong_is_named() {
        let read = request(|_| {}).expect("good");
        assert_eq!(read.terms, Terms { rhythm: Rhythm::Every(60_000), keep: 3, bandwidth: 0 });
        assert_eq!(read.name.to_string(), "db-1/h2");
        let most = request(|it| (it.every_ms, it.keep, it.bandwidth) = (86_400_000, 64, 1 << 40)).expect("good");
        assert_eq!(most.terms, Terms { rhythm: Rhythm::Every(86_400_000), keep: 64, bandwidth: 1 << 40 });
        assert_eq!(request(|it| it.target_lag_ms = 30_000).expect("good").terms.rhythm, Rhythm::Lag(30_000));
        type Change = fn(&mut v1::CreateReplicaRequest);
        let wrong: [(Change, &str); 10] = [
            (|it| it.guest = "../db".into(), "guest"),
            (|it| it.host.clear(), "host"),
            (|it| it.every_ms = 999, "every_ms"),
            (|it| it.every_ms = 86_400_001, "every_ms"),
            (|it| it.target_lag_ms = 1_999, "target_lag_ms"),
            (|it| it.target_lag_ms = 86_400_001, "target_lag_ms"),
            (|it| (it.every_ms, it.target_lag_ms) = (60_000, 30_000), "target_lag_ms"),
            (|it| it.keep = 65, "keep"),
            (|it| it.bandwidth = 1, "bandwidth"),
            (|it| it.bandwidth = u64::MAX, "bandwidth"),
        ];
        for (change, field) in wrong {
            assert_eq!(request(change).expect_err("must be refused").field, field);
        }
    }

    #[test]
    fn no_point_is_the_newest() {
        let promote = |point| {
            let (guest, host) = ("db-1".to_owned(), "h2".to_owned());
            v1::PromoteReplicaRequest { guest, host, point, even_if_connected: true }
        };
        let read = |point| PromotionRequest::try_from(promote(point)).expect("good");
        assert_eq!((read(0).point, read(7).point, read(7).even_if_connected), (None, Some(7), true));
        let nowhere = v1::PromoteReplicaRequest { host: "h2;".into(), ..promote(0) };
        assert_eq!(PromotionRequest::try_from(nowhere).expect_err("must be refused").field, "host");
    }

    #[test]
    fn points_are_so_many_and_in_order() {
        let point = |number| v1::Point { number, at_ms: 5, quiesced: true };
        let read = points(vec![point(1), point(7)]).expect("good");
        assert_eq!(read.into_iter().map(v1::Point::from).collect::<Vec<_>>(), [point(1), point(7)]);
        let field = |given| points(given).expect_err("must be refused").field;
        assert_eq!(field(vec![point(0)]), "points[0].number");
        assert_eq!(field(vec![point(2), point(2)]), "points[1].number");
        assert_eq!(field(vec![point(2), point(1)]), "points[1].number");
        assert_eq!(points((1..=64).map(point).collect()).expect("as many as may be").len(), 64);
        assert_eq!(field((1..=65).map(point).collect()), "points");
    }

    #[test]
    fn what_a_sender_is_told_round_trips() {
        let desired = v1::DesiredReplication {
            id: ID.into(),
            guest: "db-1".into(),
            generation: 4,
            host: "h2".into(),
            vtep: "192.0.2.2".into(),
            peer_endpoint: "192.0.2.2:7701".into(),
            token: "t".repeat(64),
            every_ms: 60_000,
            bandwidth: 0,
            target_lag_ms: 0,
        };
        let by_lag = v1::DesiredReplication { every_ms: 0, target_lag_ms: 30_000, ..desired.clone() };
        for desired in [&desired, &by_lag] {
            let read = Replication::try_from(desired.clone()).expect("good");
            assert_eq!(v1::DesiredReplication::from(read), *desired);
        }
        let field = |change: fn(&mut v1::DesiredReplication)| {
            let mut wrong = desired.clone();
            change(&mut wrong);
            Replication::try_from(wrong).expect_err("must be refused").field
        };
        assert_eq!(field(|it| it.id = "../x".into()), "id");
        assert_eq!(field(|it| it.guest.clear()), "guest");
        assert_eq!(field(|it| it.generation = 0), "generation");
        assert_eq!(field(|it| it.vtep.clear()), "vtep");
        assert_eq!(field(|it| it.token = "t".repeat(65)), "token");
        assert_eq!(field(|it| it.every_ms = 0), "every_ms");
        assert_eq!(field(|it| it.target_lag_ms = 30_000), "target_lag_ms");
        assert_eq!(field(|it| it.bandwidth = 1), "bandwidth");
    }

    #[test]
    fn what_a_keeper_is_told_round_trips() {
        let port =
            v1::Port { id: 7, network: "blue".into(), mac: "02:00:00:00:00:07".into(), ips: vec!["10.7.0.10".into()] };
        let boot = Some(v1::Boot { kernel: "/k".into(), ..Default::default() });
        let (name, ports) = ("db-1".into(), vec![port]);
        let spec = v1::GuestSpec {
            name,
            vcpus: 1,
            queues: 1,
            memory_kib: 262_136,
            boot,
            ports,
            disks: vec![],
            guest_agent: false,
        };
        let desired = v1::DesiredReplica {
            id: ID.into(),
            spec: Some(spec),
            generation: 4,
            source: "h1".into(),
            source_vtep: "192.0.2.1".into(),
            token: "t".repeat(64),
            keep: 3,
            test: Some(v1::DesiredTest { id: ID.into(), point: 7, for_ms: 300_000 }),
        };
        let of_nobody = v1::DesiredReplica { source: String::new(), source_vtep: String::new(), ..desired.clone() };
        let of_a_stranger = v1::DesiredReplica { source_vtep: String::new(), test: None, ..desired.clone() };
        for desired in [&desired, &of_nobody, &of_a_stranger] {
            let read = Keeping::try_from(desired.clone()).expect("good");
            assert_eq!(v1::DesiredReplica::from(read), *desired);
        }
        let field = |change: fn(&mut v1::DesiredReplica)| {
            let mut wrong = desired.clone();
            change(&mut wrong);
            Keeping::try_from(wrong).expect_err("must be refused").field
        };
        assert_eq!(field(|it| it.id.clear()), "id");
        assert_eq!(field(|it| it.spec = None), "spec");
        assert_eq!(field(|it| it.spec.as_mut().expect("has one").memory_kib = 0), "spec.memory_kib");
        assert_eq!(field(|it| it.generation = 0), "generation");
        assert_eq!(field(|it| it.source = "h1/..".into()), "source");
        assert_eq!(field(|it| it.source_vtep = "h1".into()), "source_vtep");
        assert_eq!(field(|it| it.token.clear()), "token");
        assert_eq!(field(|it| it.keep = 0), "keep");
        fn test(desired: &mut v1::DesiredReplica) -> &mut v1::DesiredTest {
            desired.test.as_mut().expect("has one")
        }
        assert_eq!(field(|it| test(it).id = "a/b".into()), "test.id");
        assert_eq!(field(|it| test(it).point = 0), "test.point");
        assert_eq!(field(|it| test(it).for_ms = 999), "test.for_ms");
    }

    #[test]
    fn a_promotion_names_a_point() {
        let promotion = v1::Promotion { replica_id: ID.into(), point: 3 };
        assert_eq!(v1::Promotion::from(Promotion::try_from(promotion.clone()).expect("good")), promotion);
        let field = |it: v1::Promotion| Promotion::try_from(it).expect_err("must be refused").field;
        assert_eq!(field(v1::Promotion { point: 0, ..promotion.clone() }), "point");
        assert_eq!(field(v1::Promotion { replica_id: String::new(), ..promotion }), "replica_id");
    }
}
