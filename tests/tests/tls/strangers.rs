//! Callers that are none of our programs: they show what they like, believe whatever they are shown, or say nothing.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::io::AsyncReadExt as _;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::controller::{Controller, PATIENCE, Pki};

/// Believes everything.
#[derive(Debug)]
struct Gullible(Arc<CryptoProvider>);

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A connection that shows the certificate in a directory, or none.
pub(crate) async fn connect(
    address: SocketAddr,
    shows: Option<&Path>,
) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(Gullible(provider)));
    let mut config = match shows {
        Some(directory) => {
            let chain = CertificateDer::pem_file_iter(directory.join("cert.pem")).unwrap();
            let key = PrivateKeyDer::from_pem_file(directory.join("key.pem")).unwrap();
            config.with_client_auth_cert(chain.collect::<Result<_, _>>().unwrap(), key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = tokio::net::TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::IpAddress(address.ip().into()), tcp).await
}

/// What a server answers to such a client.
pub(crate) async fn alert(address: SocketAddr, shows: Option<&Path>) -> AlertDescription {
    let error = match connect(address, shows).await {
        Ok(mut stream) => stream.read(&mut [0; 64]).await.expect_err("the server must not speak to it"),
        Err(error) => error,
    };
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::AlertReceived(alert)) => *alert,
        _ => panic!("the server must say what it has against its caller: {error:?}"),
    }
}

/// The certificate a server shows.
pub(crate) async fn shown(address: SocketAddr, shows: &Path) -> CertificateDer<'static> {
    let stream = connect(address, Some(shows)).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

#[tokio::test]
async fn who_never_finishes_a_handshake_hinders_nobody() {
    let pki = Pki::init();
    let controller = Controller::start(&pki.of("controller"));
    let begun = Instant::now();
    let mut slow: Vec<_> = (0..60).map(|_| TcpStream::connect(controller.address).unwrap()).collect();
    for _ in 0..5 {
        let asked = Instant::now();
        controller.ask(&pki.of("operator/admin"), &["host", "list"]).done();
        assert!(asked.elapsed() < Duration::from_secs(4), "a proper call waited for the slow ones");
    }
    // Each is turned away, and the log says why, not 60 times.
    for stream in &mut slow {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0, "the server hangs up");
    }
    assert!(begun.elapsed() >= Duration::from_secs(4), "a slow network is given its time");
    controller.says("did not finish the handshake");
    let lines = controller.log().matches("did not finish the handshake").count();
    assert!(lines <= 10, "{lines} lines in the log for one caller");
}

#[tokio::test]
async fn one_address_cannot_take_all_places_at_the_door() {
    let pki = Pki::init();
    let controller = Controller::start(&pki.of("controller"));
    let crowd: Vec<_> = (0..100).map(|_| TcpStream::connect(controller.address).unwrap()).collect();
    controller.says("too many handshakes are under way");
    // The same address again, once its own are over.
    drop(crowd);
    let deadline = Instant::now() + PATIENCE;
    while controller.ask(&pki.of("operator/admin"), &["host", "list"]).code != 0 {
        assert!(Instant::now() < deadline, "the door stays shut");
    }
}
