//! `throughline pki`: a private CA in a directory.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use throughline_identity::{
    Identity, TrustDomain,
    authority::{Authority, AuthorityError, DAYS, Entry, State, Validity},
};

use crate::{
    exit::Exit,
    failure::Failure,
    output::{Format, Show},
};

pub(super) const EXAMPLES: &str = "\
EXAMPLES:
  throughline pki init --dir /root/pki
  throughline pki issue agent/h1 --dir /root/pki
  throughline pki show --dir /root/pki

A directory with ca.pem, cert.pem, key.pem and crl.pem is written for each identity. Copy it to
/etc/throughline/tls of its host, an operator's to ~/.config/throughline. Daemons use changed files
without a restart. Any other CA serves as well: a certificate needs one URI among its subject
alternative names, spiffe://TRUST-DOMAIN/ and controller, agent/HOST or operator/NAME.";

/// Subcommands of `pki`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a CA, and certificates for the controller and the operator admin
    #[command(after_help = "\
EXAMPLES:
  throughline pki init --dir /root/pki
  throughline pki init --dir /root/pki --trust-domain bank.example

Keep the directory where only you can read it: its ca-key.pem makes everybody of the fabric. The
file roles in DIR/controller says what each operator may do.")]
    Init {
        #[command(flatten)]
        at: At,
        /// Name of the fabric in its certificates: a-z, 0-9, '.', '-' and '_'
        #[arg(long, value_name = "NAME", default_value = "throughline")]
        trust_domain: TrustDomain,
    },
    /// Issue a first certificate to an agent or an operator
    #[command(after_help = "\
EXAMPLES:
  throughline pki issue agent/h1 --dir /root/pki
  throughline pki issue operator/alice --dir /root/pki --days 90 --out /tmp/alice")]
    Issue {
        /// Who it is for: controller, agent/HOST or operator/NAME
        identity: Identity,
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        terms: Terms,
    },
    /// Issue another certificate, with a new key; or change to a new CA
    #[command(after_help = "\
EXAMPLES:
  throughline pki rotate agent/h1 --dir /root/pki
  throughline pki rotate --ca --dir /root/pki
  throughline pki rotate --ca --finish --dir /root/pki

The certificate before stays good until it expires or is revoked. A change of the CA breaks nothing
in this order: rotate --ca, copy ca.pem and crl.pem to everybody, rotate everybody and copy their
directories, rotate --ca --finish, copy ca.pem and crl.pem to everybody.")]
    Rotate {
        /// Who it is for
        #[arg(required_unless_present = "ca", conflicts_with = "ca")]
        identity: Option<Identity>,
        #[command(flatten)]
        at: At,
        /// Make a new CA; the old one stays in ca.pem as the second
        #[arg(long, conflicts_with_all = ["days", "out"])]
        ca: bool,
        /// Drop the old CA; refused while somebody has no certificate of the new one
        #[arg(long, requires = "ca")]
        finish: bool,
        #[command(flatten)]
        terms: Terms,
    },
    /// Revoke a certificate, or all of an identity
    #[command(after_help = "\
EXAMPLES:
  throughline pki revoke agent/h1 --dir /root/pki
  throughline pki revoke 0a1b2c3d4e5f60718293a4b5c6d7e8f901234567 --dir /root/pki

Copy crl.pem to everybody: each closes the connections of whom it names, within seconds.")]
    Revoke {
        /// Whose, or the serial number of one
        #[arg(value_name = "IDENTITY|SERIAL")]
        what: String,
        #[command(flatten)]
        at: At,
    },
    /// List what was issued
    #[command(after_help = "\
EXAMPLES:
  throughline pki show --dir /root/pki
  throughline pki show --dir /root/pki -o json | jq -r '.certificates[].identity'")]
    Show {
        #[command(flatten)]
        at: At,
    },
}

/// Which CA.
#[derive(Debug, Args)]
pub(crate) struct At {
    /// Directory of the CA
    #[arg(long, value_name = "DIR", env = "THROUGHLINE_PKI")]
    dir: PathBuf,
}

/// Where a certificate goes and how long it lasts.
#[derive(Debug, Args)]
pub(crate) struct Terms {
    /// Directory for the files of the identity [default: DIR/IDENTITY]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Days until it expires
    #[arg(long, value_name = "N", default_value_t = DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// Whatever stood in the way.
    pub(crate) fn run(self, output: Format) -> Result<(), Failure> {
        match self {
            Self::Init { at: At { dir }, trust_domain } => {
                let authority = Authority::init(&dir, trust_domain).map_err(failed("make a CA"))?;
                let all: Vec<_> = authority.entries().map(|(entry, old)| Row::of(entry, old, &authority)).collect();
                let text = format!(
                    "a CA for {} is in {}\n  copy {} to /etc/throughline/tls of the controller\n  copy {} to ~/.config/throughline of an operator",
                    authority.domain(),
                    dir.display(),
                    dir.join("controller").display(),
                    dir.join("operator/admin").display()
                );
                output.done(&text, &Rows { certificates: all })
            }
            Self::Issue { identity, at, terms } => {
                let what = format!("issue a certificate to {identity}");
                let mut authority = open(&at, &what)?;
                let place = terms.out.clone().unwrap_or_else(|| authority.place(&identity));
                let entry = authority.issue(identity, Validity::days(terms.days), terms.out.as_deref());
                issued(output, &authority, &entry.map_err(failed(&what))?, &place)
            }
            Self::Rotate { identity: Some(identity), at, terms, .. } => {
                let what = format!("issue another certificate to {identity}");
                let mut authority = open(&at, &what)?;
                let place = terms.out.clone().unwrap_or_else(|| authority.place(&identity));
                let entry = authority.rotate(identity, Validity::days(terms.days), terms.out.as_deref());
                issued(output, &authority, &entry.map_err(failed(&what))?, &place)
            }
            Self::Rotate { at, finish: false, .. } => {
                let what = "make a new CA";
                let mut authority = open(&at, what)?;
                authority.rotate_ca().map_err(failed(what))?;
                output.done(&format!("a new CA is in {}, beside the old one\n{COPY_ALL}", at.dir.display()), &Done {})
            }
            Self::Rotate { at, finish: true, .. } => {
                let what = "drop the old CA";
                let mut authority = open(&at, what)?;
                authority.finish_ca().map_err(failed(what))?;
                output.done(&format!("the old CA is gone from {}\n{COPY_ALL}", at.dir.display()), &Done {})
            }
            Self::Revoke { what, at } => {
                let goal = format!("revoke {what}");
                let mut authority = open(&at, &goal)?;
                let revoked = authority.revoke(&what).map_err(failed(&goal))?;
                let rows: Vec<_> = revoked.iter().map(|entry| Row::of(entry, false, &authority)).collect();
                let names: Vec<_> = rows.iter().map(|row| format!("{} of {}", row.serial, row.identity)).collect();
                let text = format!("revoked: {}\n{COPY_LIST}", names.join(", "));
                output.done(&text, &Rows { certificates: rows })
            }
            Self::Show { at } => {
                let authority = open(&at, "list certificates")?;
                let all: Vec<_> = authority.entries().map(|(entry, old)| Row::of(entry, old, &authority)).collect();
                let all = Rows { certificates: all };
                output.list(&all.certificates, &all)
            }
        }
    }
}

const COPY_ALL: &str = "  copy its ca.pem and crl.pem to everybody (they are in the directories of all identities too)";
const COPY_LIST: &str = "  copy its crl.pem to everybody (it is in the directories of all identities too)";

fn open(at: &At, what: &str) -> Result<Authority, Failure> {
    Authority::open(&at.dir).map_err(failed(what))
}

fn issued(output: Format, authority: &Authority, entry: &Entry, place: &Path) -> Result<(), Failure> {
    let text = format!("{} expires on {}\n  copy {} to its host", entry.identity, entry.expires, place.display());
    output.done(&text, &Row::of(entry, false, authority))
}

/// What the CA said, with the exit code that is its meaning.
fn failed(what: &str) -> impl Fn(AuthorityError) -> Failure {
    move |error| {
        let (exit, reason) = match &error {
            AuthorityError::File { .. } => (Exit::Other, "PKI_FILE"),
            AuthorityError::Content { .. } => (Exit::Other, "PKI_CONTENT"),
            AuthorityError::Crypto(_) => (Exit::Other, "PKI_CRYPTO"),
            AuthorityError::NoCa(_) => (Exit::NotFound, "NO_CA"),
            AuthorityError::Unknown(_) => (Exit::NotFound, "NOT_ISSUED"),
            AuthorityError::Exists(_) => (Exit::Refused, "CA_EXISTS"),
            AuthorityError::Issued(..) => (Exit::Refused, "ALREADY_ISSUED"),
            AuthorityError::ChangingOver => (Exit::Refused, "CA_CHANGE_UNDER_WAY"),
            AuthorityError::NotChangingOver => (Exit::Refused, "NO_CA_CHANGE"),
            AuthorityError::StillOld(_) => (Exit::Refused, "OLD_CA_IN_USE"),
        };
        Failure::new(exit, reason, what, error.to_string())
    }
}

#[derive(Debug, Serialize)]
struct Done {}

#[derive(Debug, Serialize)]
struct Rows {
    certificates: Vec<Row>,
}

/// A certificate, as it is shown.
#[derive(Debug, Serialize)]
struct Row {
    identity: String,
    serial: String,
    /// Seconds since 1970.
    expires: i64,
    state: &'static str,
    /// From the CA that is being left.
    old_ca: bool,
    #[serde(skip)]
    until: String,
    spiffe_id: String,
}

impl Row {
    fn of(entry: &Entry, old_ca: bool, authority: &Authority) -> Self {
        let state = match entry.state {
            State::Revoked(_) => "revoked",
            State::Good if entry.expires.days_left() < 0 => "expired",
            State::Good => "good",
        };
        Self {
            identity: entry.identity.to_string(),
            serial: entry.serial.to_string(),
            expires: entry.expires.0,
            state,
            old_ca,
            until: entry.expires.to_string(),
            spiffe_id: format!("spiffe://{}/{}", authority.domain(), entry.identity),
        }
    }
}

impl Show<5> for Row {
    const HEADING: [&'static str; 5] = ["IDENTITY", "SERIAL", "EXPIRES", "STATE", "CA"];

    fn row(&self) -> [String; 5] {
        let ca = if self.old_ca { "old" } else { "" };
        [self.identity.clone(), self.serial.clone(), self.until.clone(), self.state.to_owned(), ca.to_owned()]
    }

    fn properties(&self) -> Vec<(&'static str, String)> {
        vec![("identity", self.identity.clone()), ("serial", self.serial.clone()), ("expires", self.until.clone())]
    }
}
