@0xc9d5f1a37e2b8406;
# The control plane's wire: daemons and ubsctl ask a member of metad, members talk to each other.
#
# Compatible change: new fields and union members at the end. Anything else raises `protocol`;
# a member speaks its own protocol and the one before.

const protocol :UInt16 = 1;

struct Uuid {
  high @0 :UInt64;
  low @1 :UInt64;
}

interface Entrance {
  # The first object of every connection.
  metad @0 (protocol :UInt16, program :Text) -> (metad :Metad);
  member @1 (protocol :UInt16) -> (member :Member);
}

interface Metad {
  ask @0 (question :Question) -> (answer :Answer);
}

interface Member {
  # Between members. Raft messages travel as postcard in one piece, everything else typed.
  facts @0 () -> (facts :MemberFacts);
  adopt @1 (cluster :Uuid, members :List(MemberAddress)) -> ();
  append @2 (cluster :Uuid, message :Data) -> (message :Data);
  vote @3 (cluster :Uuid, message :Data) -> (message :Data);
  installSnapshot @4 (cluster :Uuid, message :Data) -> (message :Data);
}

struct MemberAddress {
  id @0 :UInt64;
  address @1 :Text;
}

struct MemberFacts {
  id @0 :UInt64;
  stage @1 :Stage;
  cluster @2 :Uuid;
  enum Stage {
    blank @0;    # the data directory is empty
    fresh @1;    # belongs to a cluster and has neither voted nor logged
    running @2;
  }
}

# ---- words -------------------------------------------------------------------------------------

enum Layout { ring @0; block @1; }
enum Standing { active @0; cordoned @1; }
enum Phase { creating @0; ready @1; deleting @2; rollingBack @3; }

struct Shape {
  shardBlocks @0 :UInt32;
  stride @1 :UInt16;
  replicas @2 :UInt8;
  layout @3 :Layout;
}

struct VolumeMap {
  sizeBlocks @0 :UInt64;
  shape @1 :Shape;
  stores @2 :List(UInt32);
}

struct Domain {
  union {
    store @0 :Void;
    server @1 :Void;
    label @2 :Text;
  }
}

struct Label {
  key @0 :Text;
  value @1 :Text;
}

struct SliceAddress {
  store @0 :UInt32;
  position @1 :UInt16;
  nsid @2 :UInt32;
  server @3 :UInt32;
  address @4 :Text;
  subsystemNqn @5 :Text;
}

struct VolumeGenerations {
  head @0 :UInt32;
  snapshots @1 :List(UInt32);  # ascending; what is missing below the head is deleted
  pending @2 :Bool;            # the last snapshot is
  hold @3 :Bool;               # no write may carry the head yet: other volumes are to be cut with this one
}

struct Refusal {
  code @0 :Text;
  sentence @1 :Text;
  remedy @2 :Text;
}

struct Subject {
  union {
    cluster @0 :Void;
    server @1 :UInt32;
    store @2 :UInt32;
    host @3 :UInt32;
    volume @4 :Uuid;
  }
}

# ---- commands and replies ----------------------------------------------------------------------

struct NewServer {
  cluster @0 :Uuid;          # nil: none yet
  uuid @1 :Uuid;
  name @2 :Text;
  address @3 :Text;
  subsystemNqn @4 :Text;
  labels @5 :List(Label);
}

struct NewStore {
  cluster @0 :Uuid;
  server @1 :UInt32;
  uuid @2 :Uuid;
  sizeBytes @3 :UInt64;
}

struct NewHost {
  uuid @0 :Uuid;
  name @1 :Text;
  hostNqn @2 :Text;
}

struct NewVolume {
  id @0 :Uuid;
  name @1 :Text;
  sizeBytes @2 :UInt64;
  replicas @3 :UInt8;
  shardBytes @4 :UInt64;
  layout @5 :Layout;
  stride @6 :UInt16;         # 0: chosen by metad
  minInSync @7 :UInt8;
  domain @8 :Domain;
  openAccess @9 :Bool;
  avoid @10 :List(UInt32);
}

struct Command {
  client @0 :Uuid;
  sequence @1 :UInt64;
  union {
    initCluster :group { uuid @2 :Uuid; name @3 :Text; }
    registerServer @4 :NewServer;
    registerStore @5 :NewStore;
    registerHost @6 :NewHost;
    createVolume @7 :NewVolume;
    deleteVolume @8 :Uuid;
    setDesiredAttachment :group { volume @9 :Uuid; host @10 :UInt32; }
    clearDesiredAttachment @11 :Uuid;
    attach :group { volume @12 :Uuid; host @13 :UInt32; }
    detach :group { volume @14 :Uuid; epoch @15 :UInt64; }
    forceDetach @16 :Uuid;
    setIsr :group { volume @17 :Uuid; epoch @18 :UInt64; seq @19 :UInt64; newIsr @20 :List(UInt32); }
    confirmSlice :group { store @21 :UInt32; nsid @22 :UInt32; sizeBlocks @55 :UInt64; }
    confirmSliceGone :group { store @23 :UInt32; nsid @24 :UInt32; }
    setServerStanding :group { server @25 :UInt32; standing @26 :Standing; }
    note :group { subject @27 :Subject; text @28 :Text; }
    addHost @29 :NewHost;
    removeHost @30 :UInt32;
    removeStore @31 :UInt32;
    removeServer @32 :UInt32;
    beginLineage @33 :UInt16;
    verifyMembership :group {
      volume @34 :Uuid; epoch @35 :UInt64; seq @36 :UInt64; foundSeq @37 :UInt64; isr @38 :List(UInt32);
    }
    maintain :group { volume @39 :Uuid; server @40 :UInt32; }
    assignMaintenance :group { volume @41 :Uuid; server @42 :UInt32; }
    createSnapshot :group { volumes @43 :List(Uuid); name @44 :Text; }
    completeSnapshot :group { volume @45 :Uuid; epoch @46 :UInt64; generation @47 :UInt32; held @64 :Bool; }
    deleteSnapshot :group { volume @48 :Uuid; generation @49 :UInt32; }
    deleteVolumeWithSnapshots @50 :Uuid;
    createView :group { id @51 :Uuid; name @52 :Text; volume @53 :Uuid; generation @54 :UInt32; }
    growVolume :group { volume @56 :Uuid; sizeBytes @57 :UInt64; }
    setSpaceLimits :group { overcommitPercent @58 :UInt32; highWaterPercent @59 :UInt32; }  # 0: as it is
    createClone :group { id @60 :Uuid; name @61 :Text; volume @62 :Uuid; generation @63 :UInt32; }
    holdSnapshot :group { volume @65 :Uuid; epoch @66 :UInt64; generation @67 :UInt32; }
    reportBlankSlice :group { store @68 :UInt32; nsid @69 :UInt32; }
    rollBack :group { volume @70 :Uuid; to @71 :UInt32; keepAs @72 :Text; }
    completeRollback :group { volume @73 :Uuid; epoch @74 :UInt64; to @75 :UInt32; before @76 :UInt32; }
  }
}

struct AttachGrant {
  volume @0 :Uuid;
  name @1 :Text;
  map @2 :VolumeMap;
  epoch @3 :UInt64;
  seq @4 :UInt64;
  isr @5 :List(UInt32);
  minInSync @6 :UInt8;
  slices @7 :List(SliceAddress);
  unverified @8 :Bool;       # restored: the stores' stamps decide first
  heldSince @9 :UInt64;
  generations @10 :VolumeGenerations;
  view @11 :UInt32;          # generation, 0: it is no view
  rollbackTo @12 :UInt32;    # 0: it is not to be rolled back
  rollbackBefore @13 :UInt32;
}

struct Reply {
  union {
    done @0 :Void;
    server @1 :UInt32;
    store @2 :UInt32;
    host @3 :UInt32;
    volume @4 :Uuid;
    granted @5 :AttachGrant;
    isrSet @6 :UInt64;
    fenced @7 :UInt64;
    stale :group { seq @8 :UInt64; isr @9 :List(UInt32); }
    refused @10 :Refusal;
  }
}

# ---- desired state -----------------------------------------------------------------------------

struct DesiredSlice {
  store @0 :UInt32;
  storeUuid @1 :Uuid;
  nsid @2 :UInt32;
  volume @3 :Uuid;
  sizeBlocks @4 :UInt64;
  shape @5 :Shape;
  position @6 :UInt16;
  openAccess @7 :Bool;
  confirmed @8 :Bool;
  remove @9 :Bool;
  generations @10 :VolumeGenerations;  # absent: drop nothing
  hasBlocks @11 :UInt64;
  parentNsid @12 :UInt32;    # 0: it is no clone's
  parentGeneration @13 :UInt32;
}

struct DesiredAttachment {
  volume @0 :Uuid;
  name @1 :Text;
  sizeBlocks @2 :UInt64;
  wanted @3 :Bool;
  ready @4 :Bool;
  epoch @5 :UInt64;          # 0: not attached
  slices @6 :List(SliceAddress);
  generations @7 :VolumeGenerations;
  newest @8 :UInt64;         # the volume's newest epoch; 0: none yet, or metad is too old to say
}

struct DesiredMaintenance {
  volume @0 :Uuid;
  name @1 :Text;
  dueIndex @2 :UInt64;       # grows when it may succeed where it has failed
  generations @3 :VolumeGenerations;
  rollbackTo @4 :UInt32;     # 0: it is not rolled back
  rollbackBefore @5 :UInt32;
}

# ---- reports: volatile, kept in the leader's memory --------------------------------------------

struct Reporter {
  union {
    server @0 :UInt32;
    host @1 :UInt32;
  }
}

enum StoreHealth { online @0; opening @1; faulted @2; }
enum VolumeHealth { attaching @0; online @1; degraded @2; stalled @3; failed @4; detaching @5; }

struct StoreReport {
  store @0 :UInt32;
  health @1 :StoreHealth;
  usedBytes @2 :UInt64;
  sizeBytes @3 :UInt64;
  note @4 :Text;
}

struct VolumeReport {
  volume @0 :Uuid;
  health @1 :VolumeHealth;
  device @2 :Text;
  note @3 :Text;
}

struct ResilverReport {
  volume @0 :Uuid;
  store @1 :UInt32;
  startedUnixMs @2 :UInt64;
  doneBytes @3 :UInt64;
  totalBytes @4 :UInt64;
  bytesPerS @5 :UInt64;
  outcome @6 :ResilverOutcome;
  endedUnixMs @7 :UInt64;
}

enum ResilverOutcome { running @0; complete @1; failed @2; }

struct Report {
  from @0 :Reporter;
  run @1 :Uuid;              # of the reporting process
  turn @2 :UInt64;           # of the content; grows when it changes
  contents @3 :Bool;         # false: a heartbeat; the content of `turn` stands
  stores @4 :List(StoreReport);
  volumes @5 :List(VolumeReport);
  resilvers @6 :List(ResilverReport);
}

# ---- views -------------------------------------------------------------------------------------

enum Liveness { unknown @0; online @1; suspect @2; offline @3; }

struct MemberStatus {
  id @0 :UInt64;
  stage @1 :MemberFacts.Stage;
  cluster @2 :Uuid;
  role @3 :Text;
  term @4 :UInt64;
  leader @5 :UInt64;         # 0: none known
  appliedIndex @6 :UInt64;
  committedIndex @7 :UInt64;
  members @8 :List(MemberAddress);
  voters @9 :List(UInt64);
  version @10 :Text;
  note @11 :Text;            # what it waits for, in a sentence
  logFillPercent @12 :UInt8;
}

struct ClusterView {
  uuid @0 :Uuid;
  name @1 :Text;
  lineage @2 :UInt16;
  schema @3 :UInt16;
  leader @4 :MemberAddress;
  appliedIndex @5 :UInt64;
  members @6 :List(MemberAddress);
  overcommitPercent @7 :UInt32;
  highWaterPercent @8 :UInt32;
}

struct ServerView {
  id @0 :UInt32;
  uuid @1 :Uuid;
  name @2 :Text;
  address @3 :Text;
  subsystemNqn @4 :Text;
  labels @5 :List(Label);
  standing @6 :Standing;
  liveness @7 :Liveness;
  stores @8 :UInt32;
}

struct StoreView {
  id @0 :UInt32;
  uuid @1 :Uuid;
  server @2 :UInt32;
  serverName @3 :Text;
  sizeBytes @4 :UInt64;
  promisedBytes @5 :UInt64;
  slices @6 :UInt32;
  liveness @7 :Liveness;
  reported @8 :Bool;
  report @9 :StoreReport;
}

struct HostView {
  id @0 :UInt32;
  uuid @1 :Uuid;
  name @2 :Text;
  hostNqn @3 :Text;
  liveness @4 :Liveness;
  volumes @5 :UInt32;
  standard @6 :Bool;         # an NVMe host without clientd; it reports to nobody
}

struct SliceView {
  nsid @0 :UInt32;
  store @1 :UInt32;
  server @2 :UInt32;
  serverName @3 :Text;
  address @4 :Text;
  position @5 :UInt16;
  confirmed @6 :Bool;
  inSync @7 :Bool;
  liveness @8 :Liveness;
  sizeBlocks @9 :UInt64;
}

struct VolumeView {
  id @0 :Uuid;
  name @1 :Text;
  map @2 :VolumeMap;
  set @3 :UInt32;
  minInSync @4 :UInt8;
  openAccess @5 :Bool;
  phase @6 :Phase;
  desiredOn @7 :Text;        # host name, empty: nowhere
  heldBy @8 :Text;           # host name, empty: nobody
  epoch @9 :UInt64;
  seq @10 :UInt64;
  slices @11 :List(SliceView);
  reported @12 :Bool;
  report @13 :VolumeReport;
  holderLiveness @14 :Liveness;
  maintainedBy @15 :Text;    # server name, empty: nobody
  head @16 :UInt32;          # generation
  snapshots @17 :UInt32;     # how many
  pendingSnapshot @18 :Text; # its name, empty: none is
  shows @19 :Text;           # VOLUME@NAME if it is a view, else empty
  growingTo @20 :UInt64;     # blocks, 0: it does not grow
  cloneOf @21 :Text;         # VOLUME@NAME if it is a clone, else empty
  pendingFor @22 :Text;      # other volumes that the pending snapshot waits for, comma-separated
  rollsBackTo @23 :Text;     # name of the snapshot that it is being rolled back to, else empty
}

struct SnapshotView {
  volume @0 :Uuid;
  volumeName @1 :Text;
  name @2 :Text;
  generation @3 :UInt32;
  createdUnixMs @4 :UInt64;
  pending @5 :Bool;
}

struct ResilverView {
  volumeName @0 :Text;
  storeName @1 :Text;
  report @2 :ResilverReport;
}

struct Event {
  index @0 :UInt64;
  atUnixMs @1 :UInt64;
  subject @2 :Subject;
  kind @3 :Text;
  text @4 :Text;
}

struct Plan {
  reusedSet @0 :UInt32;      # 0: a new one
  shape @1 :Shape;
  stores @2 :List(UInt32);
  serverNames @3 :List(Text);
  sliceBytes @4 :List(UInt64);
  copysets @5 :UInt32;
  lossProbability @6 :List(Float64);
  resilverSeconds @7 :UInt64;
}

# ---- questions and answers ---------------------------------------------------------------------

struct Filter {
  name @0 :Text;             # empty: all
  version @1 :UInt64;        # answer as soon as the version is another one; 0: at once
}

struct Question {
  union {
    command @0 :Command;
    memberStatus @1 :Void;
    cluster @2 :Void;
    servers @3 :Filter;
    stores @4 :Filter;
    hosts @5 :Filter;
    volumes @6 :Filter;
    resilvers @7 :Filter;
    plan @8 :NewVolume;
    fsck @9 :Void;
    events :group { after @10 :UInt64; wait @11 :Bool; }
    watchSlices :group { server @12 :UInt32; after @13 :UInt64; }
    watchAttachments :group { host @14 :UInt32; after @15 :UInt64; }
    report @16 :Report;
    snapshots @17 :Filter;   # by VOLUME or VOLUME@NAME
  }
}

struct Answer {
  union {
    notLeader :group { known @0 :Bool; leader @1 :MemberAddress; }
    unavailable @2 :Text;
    refused @3 :Refusal;
    command :group { index @4 :UInt64; reply @5 :Reply; }
    memberStatus @6 :MemberStatus;
    cluster @7 :ClusterView;
    servers :group { version @8 :UInt64; list @9 :List(ServerView); }
    stores :group { version @10 :UInt64; list @11 :List(StoreView); }
    hosts :group { version @12 :UInt64; list @13 :List(HostView); }
    volumes :group { version @14 :UInt64; list @15 :List(VolumeView); }
    resilvers :group { version @16 :UInt64; running @17 :List(ResilverView); history @18 :List(ResilverView); }
    plan @19 :Plan;
    fsck @20 :List(Text);
    events @21 :List(Event);
    slices :group {
      index @22 :UInt64; slices @23 :List(DesiredSlice); hostNqns @24 :List(Text);
      maintenance @28 :List(DesiredMaintenance);
    }
    attachments :group { index @25 :UInt64; list @26 :List(DesiredAttachment); }
    reported @27 :Bool;        # false: send the contents, this leader does not have them
    snapshots :group { version @29 :UInt64; list @30 :List(SnapshotView); }
  }
}
