//! `Fabric`: the public service.

use std::pin::Pin;

use futures::{Stream, TryStreamExt as _, stream};
use throughline_cutover::{
    GuestName, HostName, InterfaceName, Limits, Network, NetworkName, OperatorName, ReplicaName, Stop,
    admission::{MigrationRequest, NewEndpoint, NewGuest, NewReplica, PromotionRequest, TestRequest},
    fence::Word,
};
use throughline_identity::{Caller, Identity};
use throughline_wire::{InvalidField, Refusal, disk_fate, nested, parsed, replica_name, v1};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{convert, page::Page};
use crate::{audit::Object, core::Chapter, driver::Handle, guard::Deed, record::Asked};

type Answer<T> = Result<Response<T>, Status>;

/// Serves operators and control planes.
#[derive(Clone)]
pub(crate) struct FabricService {
    driver: Handle,
}

impl FabricService {
    pub(crate) fn new(driver: Handle) -> Self {
        Self { driver }
    }

    /// Runs a job that cannot be refused.
    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut crate::core::Core) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        self.driver.call(move |core| Ok::<_, Refusal>(job(core))).await
    }
}

/// A name in a request.
fn name<T>(field: &str, text: &str) -> Result<T, Refusal>
where
    T: std::str::FromStr,
    throughline_wire::Problem: From<T::Err>,
{
    Ok(parsed(field, text)?)
}

/// A name that may be left out.
fn filter<T>(field: &str, text: &str) -> Result<Option<T>, Refusal>
where
    T: std::str::FromStr,
    throughline_wire::Problem: From<T::Err>,
{
    if text.is_empty() { Ok(None) } else { name(field, text).map(Some) }
}

/// The operator who asks; `None`: somebody unproven.
fn operator<T>(request: &Request<T>) -> Result<Option<OperatorName>, Status> {
    Ok(match Caller::of(request)? {
        Caller::Known(Identity::Operator(name)) => Some(name),
        Caller::Known(Identity::Agent(_) | Identity::Controller) | Caller::Unproven => None,
    })
}

fn page(list: &'static str, filter: &str, size: u32, token: &str) -> Result<Page, Refusal> {
    Ok(Page::of(list, filter, size, token)?)
}

fn after<T: std::str::FromStr>(page: &Page) -> Result<Option<T>, Refusal> {
    Ok(page.after()?)
}

#[tonic::async_trait]
impl v1::fabric_server::Fabric for FabricService {
    async fn create_network(&self, request: Request<v1::CreateNetworkRequest>) -> Answer<v1::Network> {
        let deed = Deed::of(&request);
        let network: Network = nested("network", request.into_inner().network).map_err(Refusal::from)?;
        deed.concerns(Object::network(&network.name));
        let network = self.driver.command(move |core| core.create_network(network)).await?;
        Ok(Response::new(network.into()))
    }

    async fn get_network(&self, request: Request<v1::GetNetworkRequest>) -> Answer<v1::Network> {
        let name: NetworkName = name("name", &request.into_inner().name)?;
        let network = self.driver.call(move |core| core.network(&name)).await?;
        Ok(Response::new(network.into()))
    }

    async fn list_networks(&self, request: Request<v1::ListNetworksRequest>) -> Answer<v1::ListNetworksResponse> {
        let request = request.into_inner();
        let page = page("networks", "", request.page_size, &request.page_token)?;
        let (after, size) = (after(&page)?, page.size);
        let (networks, more) = self.read(move |core| core.networks(after.as_ref(), size)).await?;
        let next_page_token = page.next(networks.last().map(|it| &it.name), more);
        let networks = networks.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ListNetworksResponse { networks, next_page_token }))
    }

    async fn delete_network(&self, request: Request<v1::DeleteNetworkRequest>) -> Answer<v1::DeleteNetworkResponse> {
        let deed = Deed::of(&request);
        let name: NetworkName = name("name", &request.into_inner().name)?;
        deed.concerns(Object::network(&name));
        self.driver.command(move |core| core.delete_network(&name)).await?;
        Ok(Response::new(v1::DeleteNetworkResponse {}))
    }

    async fn create_host(&self, request: Request<v1::CreateHostRequest>) -> Answer<v1::Host> {
        let deed = Deed::of(&request);
        let name: HostName = name("name", &request.into_inner().name)?;
        deed.concerns(Object::host(&name));
        let host = self.driver.command(move |core| core.create_host(name)).await?;
        Ok(Response::new(host.into()))
    }

    async fn get_host(&self, request: Request<v1::GetHostRequest>) -> Answer<v1::Host> {
        let name: HostName = name("name", &request.into_inner().name)?;
        let host = self.driver.call(move |core| core.host(&name)).await?;
        Ok(Response::new(host.into()))
    }

    async fn list_hosts(&self, request: Request<v1::ListHostsRequest>) -> Answer<v1::ListHostsResponse> {
        let request = request.into_inner();
        let page = page("hosts", "", request.page_size, &request.page_token)?;
        let (after, size) = (after(&page)?, page.size);
        let (hosts, more) = self.read(move |core| core.hosts(after.as_ref(), size)).await?;
        let next_page_token = page.next(hosts.last().map(|it| &it.record.name), more);
        let hosts = hosts.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ListHostsResponse { hosts, next_page_token }))
    }

    async fn delete_host(&self, request: Request<v1::DeleteHostRequest>) -> Answer<v1::DeleteHostResponse> {
        let deed = Deed::of(&request);
        let name: HostName = name("name", &request.into_inner().name)?;
        deed.concerns(Object::host(&name));
        self.driver.command(move |core| core.delete_host(&name)).await?;
        Ok(Response::new(v1::DeleteHostResponse {}))
    }

    async fn create_guest(&self, request: Request<v1::CreateGuestRequest>) -> Answer<v1::Guest> {
        let deed = Deed::of(&request);
        let request = request.into_inner();
        let guest: NewGuest = nested("spec", request.spec).map_err(Refusal::from)?;
        let host: HostName = name("host", &request.host)?;
        deed.concerns(Object { host: Some(host.clone()), ..Object::guest(&guest.name) });
        let guest = self.driver.command(move |core| core.create_guest(guest, host)).await?;
        Ok(Response::new(guest.into()))
    }

    async fn get_guest(&self, request: Request<v1::GetGuestRequest>) -> Answer<v1::Guest> {
        let name: GuestName = name("name", &request.into_inner().name)?;
        let guest = self.driver.call(move |core| core.guest(&name)).await?;
        Ok(Response::new(guest.into()))
    }

    async fn list_guests(&self, request: Request<v1::ListGuestsRequest>) -> Answer<v1::ListGuestsResponse> {
        let request = request.into_inner();
        let host: Option<HostName> = filter("host", &request.host)?;
        let page = page("guests", &request.host, request.page_size, &request.page_token)?;
        let (after, size) = (after(&page)?, page.size);
        let (guests, more) = self.read(move |core| core.guests(after.as_ref(), host.as_ref(), size)).await?;
        let next_page_token = page.next(guests.last().map(|it| &it.spec.name), more);
        let guests = guests.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ListGuestsResponse { guests, next_page_token }))
    }

    async fn stop_guest(&self, request: Request<v1::StopGuestRequest>) -> Answer<v1::Guest> {
        let deed = Deed::of(&request);
        let request = request.into_inner();
        let name: GuestName = name("name", &request.name)?;
        let stop = Stop::try_from(request.stop.unwrap_or_default());
        let stop = stop.map_err(|e: InvalidField| Refusal::from(e.within("stop")))?;
        deed.concerns(Object::guest(&name));
        let guest = self.driver.command(move |core| core.stop_guest(&name, stop)).await?;
        Ok(Response::new(guest.into()))
    }

    async fn start_guest(&self, request: Request<v1::StartGuestRequest>) -> Answer<v1::Guest> {
        let deed = Deed::of(&request);
        let name: GuestName = name("name", &request.into_inner().name)?;
        deed.concerns(Object::guest(&name));
        let guest = self.driver.command(move |core| core.start_guest(&name)).await?;
        Ok(Response::new(guest.into()))
    }

    async fn delete_guest(&self, request: Request<v1::DeleteGuestRequest>) -> Answer<v1::DeleteGuestResponse> {
        let deed = Deed::of(&request);
        let request = request.into_inner();
        let name: GuestName = name("name", &request.name)?;
        let fate = disk_fate("disks", request.disks).map_err(Refusal::from)?;
        deed.concerns(Object { disks: fate.map(Into::into), ..Object::guest(&name) });
        self.driver.command(move |core| core.delete_guest(&name, fate)).await?;
        Ok(Response::new(v1::DeleteGuestResponse {}))
    }

    async fn create_endpoint(&self, request: Request<v1::CreateEndpointRequest>) -> Answer<v1::Endpoint> {
        let deed = Deed::of(&request);
        let endpoint: NewEndpoint = nested("endpoint", request.into_inner().endpoint).map_err(Refusal::from)?;
        deed.concerns(Object { host: Some(endpoint.host.clone()), ..Object::endpoint(&endpoint.name) });
        let endpoint = self.driver.command(move |core| core.create_endpoint(endpoint)).await?;
        Ok(Response::new(endpoint.into()))
    }

    async fn get_endpoint(&self, request: Request<v1::GetEndpointRequest>) -> Answer<v1::Endpoint> {
        let name: InterfaceName = name("name", &request.into_inner().name)?;
        let endpoint = self.driver.call(move |core| core.endpoint(&name)).await?;
        Ok(Response::new(endpoint.into()))
    }

    async fn list_endpoints(&self, request: Request<v1::ListEndpointsRequest>) -> Answer<v1::ListEndpointsResponse> {
        let request = request.into_inner();
        let page = page("endpoints", "", request.page_size, &request.page_token)?;
        let (after, size) = (after(&page)?, page.size);
        let (endpoints, more) = self.read(move |core| core.endpoints(after.as_ref(), size)).await?;
        let next_page_token = page.next(endpoints.last().map(|it| &it.name), more);
        let endpoints = endpoints.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ListEndpointsResponse { endpoints, next_page_token }))
    }

    async fn delete_endpoint(&self, request: Request<v1::DeleteEndpointRequest>) -> Answer<v1::DeleteEndpointResponse> {
        let deed = Deed::of(&request);
        let name: InterfaceName = name("name", &request.into_inner().name)?;
        deed.concerns(Object::endpoint(&name));
        self.driver.command(move |core| core.delete_endpoint(&name)).await?;
        Ok(Response::new(v1::DeleteEndpointResponse {}))
    }

    async fn create_replica(&self, request: Request<v1::CreateReplicaRequest>) -> Answer<v1::Replica> {
        let deed = Deed::of(&request);
        let wish = NewReplica::try_from(request.into_inner()).map_err(Refusal::from)?;
        deed.concerns(Object::replica(&wish.name));
        let replica = self.driver.command(move |core| core.create_replica(wish)).await?;
        Ok(Response::new(replica.into()))
    }

    async fn get_replica(&self, request: Request<v1::GetReplicaRequest>) -> Answer<v1::Replica> {
        let request = request.into_inner();
        let name = replica_name(&request.guest, &request.host).map_err(Refusal::from)?;
        let replica = self.driver.call(move |core| core.replica(&name)).await?;
        Ok(Response::new(replica.into()))
    }

    async fn list_replicas(&self, request: Request<v1::ListReplicasRequest>) -> Answer<v1::ListReplicasResponse> {
        let request = request.into_inner();
        let guest: Option<GuestName> = filter("guest", &request.guest)?;
        let page = page("replicas", &request.guest, request.page_size, &request.page_token)?;
        let (after, size): (Option<ReplicaName>, _) = (after(&page)?, page.size);
        let (replicas, more) = self.read(move |core| core.replicas(after.as_ref(), guest.as_ref(), size)).await?;
        let next_page_token = page.next(replicas.last().map(|it| &it.record.name), more);
        let replicas = replicas.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ListReplicasResponse { replicas, next_page_token }))
    }

    async fn delete_replica(&self, request: Request<v1::DeleteReplicaRequest>) -> Answer<v1::DeleteReplicaResponse> {
        let deed = Deed::of(&request);
        let request = request.into_inner();
        let name = replica_name(&request.guest, &request.host).map_err(Refusal::from)?;
        deed.concerns(Object::replica(&name));
        self.driver.command(move |core| core.delete_replica(&name)).await?;
        Ok(Response::new(v1::DeleteReplicaResponse {}))
    }

    async fn promote_replica(&self, request: Request<v1::PromoteReplicaRequest>) -> Answer<v1::Guest> {
        let deed = Deed::of(&request);
        let request = PromotionRequest::try_from(request.into_inner()).map_err(Refusal::from)?;
        deed.concerns(Object::replica(&request.replica));
        let guest = self.driver.command(move |core| core.promote_replica(&request)).await?;
        Ok(Response::new(guest.into()))
    }

    async fn test_replica(&self, request: Request<v1::TestReplicaRequest>) -> Answer<v1::Replica> {
        let deed = Deed::of(&request);
        let request = TestRequest::try_from(request.into_inner()).map_err(Refusal::from)?;
        deed.concerns(Object::replica(&request.replica));
        let replica = self.driver.command(move |core| core.test_replica(&request)).await?;
        Ok(Response::new(replica.into()))
    }

    async fn end_replica_test(&self, request: Request<v1::EndReplicaTestRequest>) -> Answer<v1::Replica> {
        let deed = Deed::of(&request);
        let request = request.into_inner();
        let name = replica_name(&request.guest, &request.host).map_err(Refusal::from)?;
        deed.concerns(Object::replica(&name));
        let replica = self.driver.command(move |core| core.end_replica_test(&name)).await?;
        Ok(Response::new(replica.into()))
    }

    async fn migrate_guest(&self, request: Request<v1::MigrateGuestRequest>) -> Answer<v1::Migration> {
        let (deed, requested_by) = (Deed::of(&request), operator(&request)?);
        let mut request = request.into_inner();
        let limits = Limits::try_from(request.limits.take().unwrap_or_default());
        let limits = limits.map_err(|e: InvalidField| Refusal::from(e.within("limits")))?;
        let request = MigrationRequest::try_from(request).map_err(Refusal::from)?;
        let object = Object { destination: request.destination.clone(), ..Object::guest(&request.guest) };
        deed.concerns(object.clone());
        let wish = Asked { request, requested_by };
        let migration: v1::Migration = self.driver.command(move |core| core.migrate(wish, limits)).await?.into();
        deed.concerns(Object { migration: Object::migration(&migration.id).migration, ..object });
        Ok(Response::new(migration))
    }

    async fn get_migration(&self, request: Request<v1::GetMigrationRequest>) -> Answer<v1::Migration> {
        let id = request.into_inner().id;
        let migration = self.driver.call(move |core| core.known(&id)).await?;
        Ok(Response::new(migration.into()))
    }

    async fn list_migrations(&self, request: Request<v1::ListMigrationsRequest>) -> Answer<v1::ListMigrationsResponse> {
        let request = request.into_inner();
        let guest: Option<GuestName> = filter("guest", &request.guest)?;
        let page = page("migrations", &request.guest, request.page_size, &request.page_token)?;
        let (before, size) = (after(&page)?, page.size);
        let (migrations, more) = self.read(move |core| core.migrations(before, guest.as_ref(), size)).await?;
        let next_page_token = page.next(migrations.last().map(|it| it.number), more);
        let migrations = migrations.iter().map(Into::into).collect();
        Ok(Response::new(v1::ListMigrationsResponse { migrations, next_page_token }))
    }

    type WatchMigrationStream = Pin<Box<dyn Stream<Item = Result<v1::MigrationEvent, Status>> + Send>>;

    async fn watch_migration(&self, request: Request<v1::WatchMigrationRequest>) -> Answer<Self::WatchMigrationStream> {
        let id = request.into_inner().id;
        let watched = id.clone();
        let first = self.driver.call(move |core| core.chapter(&watched, 0)).await?;
        let watch = Watch { driver: self.driver.clone(), id, seen: 0, place: Place::Read(Box::new(first)) };
        let chapters = stream::try_unfold(watch, Watch::read_on);
        let events = chapters.map_ok(|events| stream::iter(events.into_iter().map(Ok))).try_flatten();
        Ok(Response::new(Box::pin(events)))
    }

    async fn cancel_migration(&self, request: Request<v1::CancelMigrationRequest>) -> Answer<v1::Migration> {
        let deed = Deed::of(&request);
        let id = request.into_inner().id;
        deed.concerns(Object::migration(&id));
        let migration = self.driver.command(move |core| core.cancel(&id)).await?;
        Ok(Response::new((&migration).into()))
    }

    async fn resolve_migration(&self, request: Request<v1::ResolveMigrationRequest>) -> Answer<v1::Migration> {
        let deed = Deed::of(&request);
        let request = request.into_inner();
        deed.concerns(Object::migration(&request.id));
        let word = Word::try_from(request.word()).map_err(Refusal::from)?;
        let migration = self.driver.command(move |core| core.resolve(&request.id, word)).await?;
        Ok(Response::new((&migration).into()))
    }
}

/// One watcher of one migration. It reads from the history at its own pace, so it misses nothing and delays nobody.
struct Watch {
    driver: Handle,
    id: String,
    /// Sequence of the last event handed out.
    seen: u64,
    place: Place,
}

/// Where a watcher is.
enum Place {
    /// This is to be handed out.
    Read(Box<Chapter>),
    /// Everything was handed out; more will come.
    Wait(watch::Receiver<u64>),
    /// Everything was handed out and nothing more will come.
    End,
}

impl Watch {
    /// The events of the next chapter, possibly none; `None` when there is no next chapter.
    async fn read_on(mut self) -> Result<Option<(Vec<v1::MigrationEvent>, Self)>, Status> {
        let chapter = match self.place {
            Place::Read(chapter) => *chapter,
            Place::Wait(mut more) => {
                // An error says that the migration has ended; its last chapter is still to be read.
                let _ = more.changed().await;
                let (id, seen) = (self.id.clone(), self.seen);
                self.driver.call(move |core| core.chapter(&id, seen)).await?
            }
            Place::End => return Ok(None),
        };
        let Chapter { migration, happenings, more } = chapter;
        self.seen = happenings.last().map_or(self.seen, |last| last.sequence);
        self.place = more.map_or(Place::End, Place::Wait);
        let events = happenings.into_iter().map(|happening| convert::event(&migration, happening)).collect();
        Ok(Some((events, self)))
    }
}
