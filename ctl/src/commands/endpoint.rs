//! `throughline endpoint`.

use clap::Subcommand;
use throughline_wire::v1::{
    CreateEndpointRequest, DeleteEndpointRequest, Endpoint, GetEndpointRequest, ListEndpointsRequest,
    ListEndpointsResponse, Port,
};

use crate::{
    failure::Failure,
    output::Show,
    session::{PAGE_SIZE, Session, all_pages},
};

pub(super) const EXAMPLES: &str = "\
EXAMPLES:
  throughline endpoint create gw0 --host h3 --network blue --ip 10.0.0.1
  throughline endpoint list";

/// Subcommands of `endpoint`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create an endpoint: an interface on a host, on a network
    #[command(after_help = "\
EXAMPLES:
  throughline endpoint create gw0 --host h3 --network blue --ip 10.0.0.1 --prefix-len 24
  throughline endpoint create probe0 --host h3 \\
    --network blue --mac 02:00:00:00:00:99 --ip 10.0.0.99 --ip fd00::99")]
    Create(Create),
    /// Show one endpoint
    #[command(after_help = "\
EXAMPLES:
  throughline endpoint get gw0")]
    Get {
        /// Its name
        name: String,
    },
    /// List all endpoints
    #[command(after_help = "\
EXAMPLES:
  throughline endpoint list
  throughline endpoint list -o json | jq -r '.endpoints[].port.mac'")]
    List,
    /// Delete an endpoint and its interface
    #[command(after_help = "\
EXAMPLES:
  throughline endpoint delete gw0")]
    Delete {
        /// Its name
        name: String,
    },
}

/// Arguments of `endpoint create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Name, at most 15 characters: it is also the interface's name on the host
    name: String,
    /// Host to make it on
    #[arg(long)]
    host: String,
    /// Network it is on
    #[arg(long, value_name = "NET")]
    network: String,
    /// MAC address; allotted when not given
    #[arg(long, default_value = "", hide_default_value = true)]
    mac: String,
    /// IP address, IPv4 or IPv6, without prefix; repeat for more
    #[arg(long = "ip", value_name = "IP", required = true)]
    ips: Vec<String>,
    /// Prefix length of its IPv4 addresses, 1 to 32; 0: 24
    #[arg(long, value_name = "N", default_value_t = 0)]
    prefix_len: u32,
}

impl From<Create> for Endpoint {
    fn from(Create { name, host, network, mac, ips, prefix_len }: Create) -> Self {
        Self { name, host, port: Some(Port { id: 0, network, mac, ips }), prefix_len, generation: 0 }
    }
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// Whatever stood in the way.
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        let mut fabric = session.connect().await?;
        match self {
            Self::Create(create) => {
                let what = format!("create endpoint {}", create.name);
                let request = CreateEndpointRequest { endpoint: Some(create.into()) };
                session.output.one(&session.answer(&what, fabric.create_endpoint(request)).await?)
            }
            Self::Get { name } => {
                let what = format!("get endpoint {name}");
                session.output.one(&session.answer(&what, fabric.get_endpoint(GetEndpointRequest { name })).await?)
            }
            Self::List => {
                let endpoints = all_pages(async |page_token| {
                    let request = ListEndpointsRequest { page_size: PAGE_SIZE, page_token };
                    let page = session.answer("list endpoints", fabric.list_endpoints(request)).await?;
                    Ok((page.endpoints, page.next_page_token))
                });
                let all = ListEndpointsResponse { endpoints: endpoints.await?, next_page_token: String::new() };
                session.output.list(&all.endpoints, &all)
            }
            Self::Delete { name } => {
                let what = format!("delete endpoint {name}");
                let done = format!("endpoint {name} deleted");
                let response = session.answer(&what, fabric.delete_endpoint(DeleteEndpointRequest { name })).await?;
                session.output.done(&done, &response)
            }
        }
    }
}

impl Show<6> for Endpoint {
    const HEADING: [&'static str; 6] = ["NAME", "HOST", "NETWORK", "MAC", "IPS", "PREFIX LEN"];

    fn row(&self) -> [String; 6] {
        let port = self.port.clone().unwrap_or_default();
        let prefix = self.prefix_len.to_string();
        [self.name.clone(), self.host.clone(), port.network, port.mac, port.ips.join(","), prefix]
    }

    fn properties(&self) -> Vec<(&'static str, String)> {
        let port = self.port.clone().unwrap_or_default();
        vec![
            ("name", self.name.clone()),
            ("host", self.host.clone()),
            ("network", port.network),
            ("mac", port.mac),
            ("ips", port.ips.join(", ")),
            ("prefix length", self.prefix_len.to_string()),
            ("port id", port.id.to_string()),
        ]
    }
}
