//! Each way of not being the one who is meant: both ends say why.

use std::fs;

use throughline_identity::{
    HandshakeError, Moment, Objection, Refusal, Security,
    authority::{Authority, Validity},
};

use crate::controller::{Controller, Directory, Pki};

/// Certificates of a CA and domain of its own, with times as they are wanted.
fn issue(pki: &Pki, identity: &str, validity: Validity) -> Security {
    let mut authority = Authority::open(&pki.0.0).unwrap();
    authority.issue(identity.parse().unwrap(), validity, None).unwrap();
    pki.security(identity)
}

/// Why a call of the controller failed in its beginning.
async fn refusal(controller: &Controller, security: &Security, wanted: &str) -> HandshakeError {
    match controller.dial(security, wanted).await {
        Err(throughline_identity::DialError::Handshake { error, .. }) => *error,
        other => panic!("the two must not have agreed: {other:?}"),
    }
}

fn past() -> Validity {
    Validity { from: Moment(1_000_000_000), until: Moment(1_100_000_000) }
}

#[tokio::test]
async fn an_expired_certificate() {
    let pki = Pki::init();
    let controller = Controller::start(&pki.of("controller"));
    let late = issue(&pki, "operator/late", past());
    assert_eq!(refusal(&controller, &late, "controller").await, HandshakeError::Objected(Objection::Expired));
    controller.says("its certificate expired on 2004-11-09");
    controller
        .ask(&pki.of("operator/late"), &["host", "list"])
        .failed(3, &["our certificate has expired", "CERTIFICATE_REFUSED", "pki rotate operator/late"]);
}

#[tokio::test]
async fn a_certificate_of_another_ca() {
    let (pki, other) = (Pki::init(), Pki::init());
    let controller = Controller::start(&pki.of("controller"));
    // It does not believe the controller, and the controller hears of that.
    let stranger = other.security("operator/admin");
    assert_eq!(refusal(&controller, &stranger, "controller").await, HandshakeError::Refused(Refusal::UnknownCa));
    controller.says("it refuses us: our certificate is from no CA in its ca.pem");
    controller
        .ask(&other.of("operator/admin"), &["host", "list"])
        .failed(3, &["none of the CAs in our ca.pem", "CONTROLLER_NOT_TRUSTED"]);

    // It believes the controller, and is not believed.
    let place = other.of("operator/admin");
    for file in ["ca.pem", "crl.pem"] {
        fs::copy(pki.of("controller").join(file), place.join(file)).unwrap();
    }
    let stranger = other.security("operator/admin");
    assert_eq!(refusal(&controller, &stranger, "controller").await, HandshakeError::Objected(Objection::UnknownCa));
    controller.says("its certificate is from none of the CAs in our ca.pem");
    controller.ask(&place, &["host", "list"]).failed(3, &["from no CA in its ca.pem", "CERTIFICATE_REFUSED"]);
}

#[tokio::test]
async fn a_certificate_of_another_trust_domain() {
    // Two fabrics that trust one CA.
    let pki = Pki::init();
    let controller = Controller::start(&pki.of("controller"));
    let index = pki.0.join("index");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("trust-domain throughline", "trust-domain elsewhere")).unwrap();
    pki.issue("operator/alice");
    let alice = pki.security("operator/alice");
    let HandshakeError::Refused(Refusal::OtherDomain { found, ours }) =
        refusal(&controller, &alice, "controller").await
    else {
        panic!("the controller is of another trust domain")
    };
    assert_eq!(
        (found.to_string().as_str(), ours.to_string().as_str()),
        ("spiffe://throughline/controller", "elsewhere")
    );
    controller.says("it refuses us: we are not the one it wanted, or of another trust domain");
}

#[tokio::test]
async fn a_caller_of_another_trust_domain() {
    let pki = Pki::init();
    let controller = Controller::start(&pki.of("controller"));
    let index = pki.0.join("index");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("trust-domain throughline", "trust-domain elsewhere")).unwrap();
    let place = pki.issue("operator/mallory");
    let alert = strangers_alert(&controller, &place).await;
    assert_eq!(alert, rustls::AlertDescription::AccessDenied);
    controller.says("it is spiffe://elsewhere/operator/mallory, of another trust domain than ours, throughline");
}

/// What the server answers to a client that shows a directory's certificate and believes whatever it is shown.
async fn strangers_alert(controller: &Controller, place: &std::path::Path) -> rustls::AlertDescription {
    crate::strangers::alert(controller.address, Some(place)).await
}

#[tokio::test]
async fn a_server_that_is_somebody_else() {
    let pki = Pki::init();
    let controller = Controller::start(&pki.of("controller"));
    let admin = pki.security("operator/admin");
    let HandshakeError::Refused(Refusal::OtherIdentity { found, wanted }) =
        refusal(&controller, &admin, "agent/h1").await
    else {
        panic!("the controller is not the agent of h1")
    };
    assert_eq!((found.to_string().as_str(), wanted.to_string().as_str()), ("controller", "agent/h1"));
    controller.says("it refuses us: we are not the one it wanted");
}

#[tokio::test]
async fn a_revoked_certificate() {
    let pki = Pki::init();
    pki.issue("operator/alice");
    pki.run(&["revoke", "operator/alice"]).done();
    let controller = Controller::start(&pki.of("controller"));
    let alice = pki.security("operator/alice");
    assert_eq!(refusal(&controller, &alice, "controller").await, HandshakeError::Objected(Objection::Revoked));
    controller.says("its certificate is revoked");
    controller
        .ask(&pki.of("operator/alice"), &["host", "list"])
        .failed(3, &["our certificate is revoked", "CERTIFICATE_REFUSED", "pki rotate operator/alice"]);
    controller.ask(&pki.of("operator/admin"), &["host", "list"]).done();
}

#[tokio::test]
async fn a_server_whose_certificate_is_revoked() {
    let pki = Pki::init();
    let controller = Controller::start(&pki.of("controller"));
    // The operator has the new list, the controller runs on with files of its own.
    let own = Directory::new();
    for file in ["ca.pem", "cert.pem", "key.pem", "roles"] {
        fs::copy(pki.of("controller").join(file), own.join(file)).unwrap();
    }
    let other = Controller::start(&own.0);
    pki.run(&["revoke", "controller"]).done();
    let admin = pki.security("operator/admin");
    assert_eq!(refusal(&other, &admin, "controller").await, HandshakeError::Refused(Refusal::Revoked));
    other.says("it refuses us: our certificate is revoked");
    drop(controller);
}

#[tokio::test]
async fn no_certificate() {
    let pki = Pki::init();
    let controller = Controller::start(&pki.of("controller"));
    let alert = crate::strangers::alert(controller.address, None).await;
    assert_eq!(Objection::from(alert), Objection::NoCertificate);
    controller.says("it showed no certificate");
    let nothing = Directory::new();
    controller.ask(&nothing.0, &["host", "list"]).failed(1, &["cert.pem cannot be read", "NO_CREDENTIALS"]);
}

#[tokio::test]
async fn plaintext_to_a_port_that_speaks_tls() {
    let pki = Pki::init();
    let controller = Controller::start(&pki.of("controller"));
    let url = format!("http://{}", controller.address);
    let said = crate::controller::throughline(&["host", "list", "--insecure", "--controller", &url]);
    said.failed(6, &["PLAINTEXT", "it speaks TLS"]);
    controller.says("it does not speak TLS");
    // Without being told so, nobody speaks plaintext.
    let admin = pki.of("operator/admin");
    let said =
        crate::controller::throughline(&["host", "list", "--tls", admin.to_str().unwrap(), "--controller", &url]);
    said.failed(3, &["is plaintext: write https://", "WRONG_SCHEME"]);
}

#[tokio::test]
async fn tls_to_a_port_that_speaks_plaintext() {
    let pki = Pki::init();
    let controller = Controller::insecure();
    controller.says("PLAINTEXT");
    let admin = pki.security("operator/admin");
    assert_eq!(refusal(&controller, &admin, "controller").await, HandshakeError::Plaintext);
    controller.says("it speaks TLS; --insecure");
    controller.ask(&pki.of("operator/admin"), &["host", "list"]).failed(6, &["it does not speak TLS", "--insecure"]);
    let url = format!("http://{}", controller.address);
    crate::controller::throughline(&["host", "list", "--insecure", "--controller", &url]).done();
}

#[test]
fn plaintext_stays_on_this_machine() {
    let state = Directory::new();
    let mut command = crate::controller::program("throughline-controller");
    command.args(["--insecure", "--listen", "0.0.0.0:0", "--state-dir"]).arg(state.join("state"));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("is not a loopback address"), "{said}");
    let url = "http://192.0.2.1:7700";
    let said = crate::controller::throughline(&["host", "list", "--insecure", "--controller", url]);
    said.failed(3, &["192.0.2.1:7700 is not a loopback address", "NOT_LOOPBACK"]);
}

#[test]
fn a_daemon_with_another_ones_certificate_does_not_start() {
    let pki = Pki::init();
    let host = pki.issue("agent/h1");
    let state = Directory::new();
    let mut command = crate::controller::program("throughline-controller");
    command.args(["--listen", "127.0.0.1:0", "--state-dir"]).arg(state.join("state")).arg("--tls").arg(&host);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("is of spiffe://throughline/agent/h1; controller is"), "{said}");

    let mut command = crate::controller::program("throughline-agent");
    command.args(["--host", "h2", "--vtep", "127.0.0.1", "--peer-listen", "127.0.0.1:0", "--state-dir"]);
    let output = command.arg(state.join("agent")).arg("--tls").arg(&host).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("agent/h1; agent/h2 is needed here"), "{said}");
    assert!(!state.join("agent").exists(), "nothing was touched before it was known who this is");
}
