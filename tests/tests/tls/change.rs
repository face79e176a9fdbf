//! Files that change under a running daemon.

use std::{fs, path::Path, time::Duration};

use throughline_identity::{DialError, HandshakeError, Objection};
use throughline_wire::v1::{
    AgentMessage, ControllerMessage, Heartbeat, Hello, agent_link_client::AgentLinkClient,
    agent_message::Message as Up, controller_message::Message as Down,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    controller::{Controller, Directory, PATIENCE, Pki},
    strangers::shown,
};

/// An agent's stream, as the agent of a host would hold it.
struct Link {
    up: mpsc::Sender<AgentMessage>,
    down: Streaming<ControllerMessage>,
}

impl Link {
    async fn open(controller: &Controller, pki: &Pki, host: &str) -> Self {
        let security = pki.security(&format!("agent/{host}"));
        let mut client = AgentLinkClient::new(controller.dial(&security, "controller").await.unwrap());
        let (up, queue) = mpsc::channel(64);
        let vtep = format!("192.0.2.1{}", host.trim_start_matches('h'));
        let hello = Hello {
            host: host.to_owned(),
            peer_endpoint: format!("{vtep}:7701"),
            vtep,
            memory_kib: 1 << 20,
            accelerator: "tcg".to_owned(),
            agent_version: "0.1.0".to_owned(),
            ..Hello::default()
        };
        up.send(AgentMessage { message: Some(Up::Hello(hello)) }).await.unwrap();
        let down = client.attach(ReceiverStream::new(queue)).await.unwrap().into_inner();
        let beats = up.clone();
        tokio::spawn(async move {
            for sequence in 1.. {
                let beat = AgentMessage { message: Some(Up::Heartbeat(Heartbeat { sequence })) };
                if beats.send(beat).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        let mut link = Self { up, down };
        link.until(|message| matches!(message, Down::Desired(_))).await.unwrap();
        link
    }

    /// Reads until something fits, or the stream ends.
    async fn until(&mut self, fits: impl Fn(&Down) -> bool) -> Result<(), Status> {
        let reading = async {
            loop {
                match self.down.message().await? {
                    Some(ControllerMessage { message: Some(message) }) if fits(&message) => return Ok(()),
                    Some(_) => {}
                    None => return Err(Status::unavailable("the stream ended")),
                }
            }
        };
        timeout(PATIENCE, reading).await.expect("in time")
    }

    /// The controller tells it of a network that an operator makes now, and a port of it here.
    async fn hears_of(&mut self, controller: &Controller, operator: &Path, network: &str, vni: &str) {
        controller.ask(operator, &["network", "create", network, "--vni", vni]).done();
        let endpoint = ["endpoint", "create", network, "--network", network, "--host", "h1", "--ip", "10.0.0.1"];
        controller.ask(operator, &endpoint).done();
        let vni: u32 = vni.parse().unwrap();
        let has = |message: &Down| matches!(message, Down::Desired(desired) if desired.networks.iter().any(|it| it.network.as_ref().is_some_and(|it| it.vni == vni)));
        self.until(has).await.unwrap();
        assert!(!self.up.is_closed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_and_streams_go_on() {
    let pki = Pki::init();
    pki.issue("agent/h1");
    let (place, admin) = (pki.of("controller"), pki.of("operator/admin"));
    let controller = Controller::start(&place);
    let mut link = Link::open(&controller, &pki, "h1").await;
    let first = shown(controller.address, &admin).await;

    // What is no good is not used, and said.
    let good = fs::read(place.join("cert.pem")).unwrap();
    fs::write(place.join("cert.pem"), "garbage").unwrap();
    controller.says("those read before stay in use");
    assert_eq!(shown(controller.address, &admin).await, first);
    fs::write(place.join("cert.pem"), good).unwrap();

    // A new certificate; then a new CA, and certificates of it for all; then the old CA goes.
    pki.run(&["rotate", "controller"]).done();
    let serial = pki.run(&["show", "-o", "json"]).json()["certificates"].as_array().unwrap().last().unwrap()["serial"]
        .as_str()
        .unwrap()
        .to_owned();
    controller.says(&format!("serial={serial}"));
    assert_ne!(shown(controller.address, &admin).await, first);
    link.hears_of(&controller, &admin, "blue", "7001").await;

    let before = controller.log().matches("the credentials have changed and are used").count();
    pki.run(&["rotate", "--ca"]).done();
    wait_for_changes(&controller, before + 1).await;
    link.hears_of(&controller, &admin, "green", "7002").await;
    pki.run(&["rotate", "--ca", "--finish"]).failed(3, &["controller, agent/h1, operator/admin", "OLD_CA_IN_USE"]);
    for identity in ["controller", "agent/h1", "operator/admin"] {
        pki.run(&["rotate", identity]).done();
    }
    wait_for_changes(&controller, before + 2).await;
    // A stream that was proved by the old CA goes on as long as that is believed.
    link.hears_of(&controller, &admin, "red", "7003").await;
    let mut again = Link::open(&controller, &pki, "h1").await;
    pki.run(&["rotate", "--ca", "--finish"]).done();
    wait_for_changes(&controller, before + 3).await;
    again.hears_of(&controller, &admin, "white", "7004").await;
}

async fn wait_for_changes(controller: &Controller, count: usize) {
    let waiting = async {
        while controller.log().matches("the credentials have changed and are used").count() < count {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("a change is used in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_revoked_is_put_out() {
    let pki = Pki::init();
    pki.issue("agent/h1");
    pki.issue("agent/h2");
    let admin = pki.of("operator/admin");
    let controller = Controller::start(&pki.of("controller"));
    let mut link = Link::open(&controller, &pki, "h1").await;
    let security = pki.security("agent/h1");
    let mut other = Link::open(&controller, &pki, "h2").await;

    pki.run(&["revoke", "agent/h1"]).done();
    let ended = link.until(|_| false).await.unwrap_err();
    controller.says("an open connection is closed");
    assert!(controller.says("an open connection is closed").contains("identity=agent/h1"), "{ended}");
    match controller.dial(&security, "controller").await {
        Err(DialError::Handshake { error, .. }) if *error == HandshakeError::Objected(Objection::Revoked) => {}
        other => panic!("it must not come in again: {other:?}"),
    }
    // Nobody else notices.
    controller.ask(&admin, &["network", "create", "blue", "--vni", "7001"]).done();
    let endpoint = ["endpoint", "create", "e", "--network", "blue", "--host", "h2", "--ip", "10.0.0.1"];
    controller.ask(&admin, &endpoint).done();
    let has = |message: &Down| matches!(message, Down::Desired(desired) if !desired.networks.is_empty());
    other.until(has).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_cannot_be_read_is_not_taken_for_none() {
    let pki = Pki::init();
    pki.issue("operator/alice");
    pki.run(&["revoke", "operator/alice"]).done();
    let place = pki.of("controller");
    let controller = Controller::start(&place);
    fs::write(place.join("crl.pem"), "").unwrap();
    controller.says("crl.pem has no revocation list in it");
    controller.ask(&pki.of("operator/alice"), &["host", "list"]).failed(3, &["revoked"]);
    drop(controller);

    // And at a start it is no start.
    let state = Directory::new();
    let mut command = crate::controller::program("throughline-controller");
    command.args(["--listen", "127.0.0.1:0", "--state-dir"]).arg(state.join("state")).arg("--tls").arg(&place);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("crl.pem has no revocation list in it"), "{said}");
}
