#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use rustls::pki_types::UnixTime;

use super::*;
use crate::{Credentials, CredentialsError, Refusal, examination::Role};

struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("throughline-identity-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn init(&self) -> Authority {
        Authority::init(&self.0, "throughline".parse().unwrap()).unwrap()
    }

    fn load(&self, identity: &str) -> Credentials {
        Credentials::load(&self.0.join(identity)).unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn identity(text: &str) -> Identity {
    text.parse().unwrap()
}

/// What `judge` thinks of `shown`'s certificate.
fn judge(judge: &Credentials, shown: &Credentials) -> Result<SpiffeId, Refusal> {
    judge.examine(&shown.key.cert, Role::Client, UnixTime::now())
}

#[test]
fn what_is_issued_is_believed_until_it_is_revoked() {
    let directory = Directory::new("revoke");
    let mut authority = directory.init();
    authority.issue(identity("agent/h1"), Validity::days(1), None).unwrap();
    let (controller, h1) = (directory.load("controller"), directory.load("agent/h1"));
    assert_eq!(judge(&controller, &h1).unwrap().to_string(), "spiffe://throughline/agent/h1");
    assert_eq!(judge(&h1, &controller).unwrap().to_string(), "spiffe://throughline/controller");

    let revoked = authority.revoke("agent/h1").unwrap();
    assert_eq!(revoked.len(), 1);
    assert_eq!(judge(&directory.load("controller"), &h1), Err(Refusal::Revoked));
    assert!(judge(&directory.load("controller"), &controller).is_ok(), "the list names one and no other");
    assert!(matches!(authority.revoke("agent/h1"), Err(AuthorityError::Unknown(_))));

    // The record is read as it was written, and issuing anew is possible now.
    drop(authority);
    let mut authority = Authority::open(&directory.0).unwrap();
    assert_eq!(authority.entries().count(), 3);
    authority.issue(identity("agent/h1"), Validity::days(1), None).unwrap();
    assert!(judge(&directory.load("controller"), &directory.load("agent/h1")).is_ok());
}

#[test]
fn a_ca_is_changed_without_anybody_being_refused() {
    let directory = Directory::new("rotate-ca");
    let mut authority = directory.init();
    let before = directory.load("controller");
    authority.rotate_ca().unwrap();
    assert!(matches!(authority.rotate_ca(), Err(AuthorityError::ChangingOver)));
    let during = directory.load("controller");
    assert_eq!(during.roots.len(), 2);
    assert!(judge(&during, &before).is_ok());
    assert!(matches!(authority.finish_ca(), Err(AuthorityError::StillOld(_))));

    for who in ["controller", "operator/admin"] {
        authority.rotate(identity(who), Validity::days(1), None).unwrap();
    }
    let after = directory.load("controller");
    assert!(judge(&during, &after).is_ok() && judge(&after, &before).is_ok());
    // Revoking a certificate of the old CA works while it is there.
    let old = before.facts.serial.clone();
    drop(authority);
    let mut authority = Authority::open(&directory.0).unwrap();
    authority.revoke(old.as_str()).unwrap();
    assert_eq!(judge(&directory.load("controller"), &before), Err(Refusal::Revoked));

    authority.finish_ca().unwrap();
    assert_eq!(judge(&directory.load("controller"), &before), Err(Refusal::UnknownCa));
    assert!(judge(&directory.load("controller"), &after).is_ok());
    assert!(matches!(authority.finish_ca(), Err(AuthorityError::NotChangingOver)));
}

#[test]
fn what_is_not_of_this_fabric_is_refused_with_the_reason() {
    let directory = Directory::new("refused");
    let mut authority = directory.init();
    let controller = directory.load("controller");

    let past = Validity { from: Moment(1_000_000_000), until: Moment(1_100_000_000) };
    authority.issue(identity("agent/late"), past, None).unwrap();
    assert_eq!(judge(&controller, &directory.load("agent/late")), Err(Refusal::Expired(past.until)));
    let future = Validity { from: Moment::now().plus_days(1), until: Moment::now().plus_days(2) };
    authority.issue(identity("agent/early"), future, None).unwrap();
    assert_eq!(judge(&controller, &directory.load("agent/early")), Err(Refusal::NotYetValid(future.from)));
    let operator = directory.load("operator/admin");
    assert_eq!(controller.examine(&operator.key.cert, Role::Server, UnixTime::now()), Err(Refusal::WrongUse));

    let other = Directory::new("refused-other");
    other.init();
    assert_eq!(judge(&controller, &other.load("controller")), Err(Refusal::UnknownCa));

    // Another trust domain under the same CA.
    authority.index.domain = "elsewhere".parse().unwrap();
    authority.issue(identity("agent/h9"), Validity::days(1), None).unwrap();
    let found = "spiffe://elsewhere/agent/h9".parse().unwrap();
    let ours = "throughline".parse().unwrap();
    assert_eq!(judge(&controller, &directory.load("agent/h9")), Err(Refusal::OtherDomain { found, ours }));
}

#[test]
fn credentials_that_are_no_good_are_refused_by_name() {
    let directory = Directory::new("files");
    let authority = directory.init();
    let place = authority.place(&Identity::Controller);
    let problem = || Credentials::load(&place).unwrap_err().to_string();
    let (key, crl) = (place.join("key.pem"), place.join("crl.pem"));

    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Credentials::load(&place), Err(CredentialsError::Exposed { mode: 0o640, .. })));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    // A list that is there must be readable; without any, nothing is revoked.
    let good = fs::read(&crl).unwrap();
    for bad in ["", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "garbage"] {
        fs::write(&crl, bad).unwrap();
        assert!(problem().contains("crl.pem"), "{}", problem());
    }
    fs::remove_file(&crl).unwrap();
    assert!(Credentials::load(&place).unwrap().revoked.is_none());
    fs::write(&crl, good).unwrap();

    // Another's key.
    fs::copy(authority.place(&identity("operator/admin")).join("key.pem"), &key).unwrap();
    assert!(problem().contains("do not fit each other"), "{}", problem());
    fs::remove_file(&key).unwrap();
    assert!(problem().contains("key.pem cannot be read"), "{}", problem());
}

#[test]
fn a_list_of_another_ca_hides_nothing() {
    let (directory, other) = (Directory::new("lists"), Directory::new("lists-other"));
    directory.init();
    other.init();
    fs::copy(other.0.join("crl.pem"), directory.0.join("controller/crl.pem")).unwrap();
    let controller = directory.load("controller");
    assert_eq!(judge(&controller, &controller), Err(Refusal::UnknownStatus));
}

#[test]
fn keys_are_for_their_owner_only() {
    let directory = Directory::new("modes");
    directory.init();
    for file in ["ca-key.pem", "controller/key.pem", "operator/admin/key.pem"] {
        let mode = fs::metadata(directory.0.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file}");
    }
    for place in ["", "controller", "operator/admin"] {
        let mode = fs::metadata(directory.0.join(place)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{place}");
    }
    assert!(matches!(Authority::init(&directory.0, "throughline".parse().unwrap()), Err(AuthorityError::Exists(_))));
}

#[test]
fn what_is_wrong_or_will_be_soon_is_warned_of() {
    let directory = Directory::new("warnings");
    let mut authority = directory.init();
    let warnings = |identity: &str| directory.load(identity).warnings(&directory.0.join(identity)).join("\n");
    assert_eq!(warnings("controller"), "");
    authority.issue(identity("agent/soon"), Validity::days(10), None).unwrap();
    assert!(warnings("agent/soon").contains("cert.pem of agent/soon expires on"), "{}", warnings("agent/soon"));
    let past = Validity { from: Moment(1_000_000_000), until: Moment(1_100_000_000) };
    authority.issue(identity("agent/late"), past, None).unwrap();
    assert!(warnings("agent/late").contains("cert.pem of agent/late expired on 2004-11-09"));
    authority.revoke("controller").unwrap();
    assert!(
        warnings("controller").contains("cert.pem would be refused by the files beside it: its certificate is revoked")
    );
}
