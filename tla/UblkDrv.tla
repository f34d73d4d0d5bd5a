------------------------------- MODULE UblkDrv -------------------------------
(***************************************************************************)
(* One ublk device: the driver, the server's tag and life machines, and a  *)
(* volume of one block with a volatile cache behind them.                   *)
(*                                                                          *)
(* What it shows.  Every request of the host is completed exactly once and  *)
(* none is forgotten, over any number of kills of the server: the driver    *)
(* has the tag, or the server has it, or a completion of the driver is on   *)
(* its way, never two of them (TagOK).  A read returns nothing that a write *)
(* acknowledged before the read began has replaced (ReadOK).  What a        *)
(* completed flush or FUA write covers survives whatever subset of the      *)
(* volatile cache a power cut keeps (DurOK).  The host sees no error unless *)
(* the device was stopped on request (NoBad).  Every request ends (Ends).   *)
(*                                                                          *)
(* A server is killed at any moment.  Its commands to the volume may still  *)
(* land, until the next server's attach has fenced them.  The driver keeps  *)
(* what it had handed out and hands it out again (USER_RECOVERY | REISSUE), *)
(* so a write may land twice, and in any order with those it overlapped.    *)
(*                                                                          *)
(* Abstractions.  One block and one copy of it: replicas are                *)
(* ReplicatedShard's.  A command of the server to the driver takes effect   *)
(* when it is issued: a kill in between is a kill before.  The driver's     *)
(* completion is a step of its own (own = "offered", "aborted").  Requests  *)
(* that violate the device's limits are not made.  A device that was added  *)
(* and never started disappears with its server.  The volume may answer     *)
(* late but does answer: its own troubles are modelled elsewhere.           *)
(*                                                                          *)
(*   here                     code                                          *)
(*   ts[t]                    ublk/src/tag.rs   TagState                    *)
(*   See, Take, Deny, Turn    Tags::on_offered, on_buffer_taken,            *)
(*                            on_buffer_denied, TurnEnded                   *)
(*   CopiedIn, Answered,      Tags::on_copied_in, on_answered,              *)
(*   CopiedOut, Withdrawn     on_copied_out, on_withdrawn                   *)
(*   phase, L*                ublk/src/life.rs  Phase, Life::step           *)
(*   K*                       the driver, and the helper's control commands *)
(*   Attach                   a new epoch of volume/src/core                *)
(***************************************************************************)
EXTENDS Integers, Sequences, FiniteSets, TLC

CONSTANTS
  Tags,          \* the tags of the device
  Bufs,          \* buffers that reads and writes share
  MaxWrites, MaxReads, MaxFlushes,
  MaxCrash,      \* kills of the server
  MaxStop,       \* stops asked for by the owner
  MaxFail,       \* failed starts, failed copies, refused stops, refused commands
  FFence,        \* a new server attaches with a new epoch before it serves
  FReissue,      \* USER_RECOVERY_REISSUE: what was handed out is handed out again
  FCache,        \* the device declares its volatile cache, so flushes arrive
  FFua,          \* FUA is passed on
  FAnswer,       \* a request is committed after the volume has answered
  FKeep,         \* a recovered device is not removed because of a failure
  FOrder,        \* the node is closed after the last fetch has come back
  FOnce,         \* no command is issued for a withdrawn tag
  FTurn          \* who was denied a buffer is asked again

VARIABLES
  dev,    \* "none" "added" "live" "quiesced" "stopping" "dead"
  own,    \* who has the tag: "none" "driver" "offered" "server" "aborted"
  req,    \* the host's request on the tag
  srv,    \* the server process
  ts,     \* its tags
  want,   \* tags that wait for a buffer, oldest first
  vq,     \* commands to the volume
  vol,    \* the volume: [cur, pd, ep]
  g       \* ghosts and budgets

vars == <<dev, own, req, srv, ts, want, vq, vol, g>>

NoReq  == [op |-> "-", v |-> 0, fua |-> FALSE, cov |-> {}, st |-> "-"]
NoSrv(ep) == [up |-> FALSE, ep |-> ep, phase |-> "Gone", origin |-> "Created", ctl |-> "-",
              stop |-> FALSE, stopped |-> FALSE, failed |-> FALSE, starved |-> FALSE]

Init ==
  /\ dev = "none"
  /\ own = [t \in Tags |-> "none"]
  /\ req = [t \in Tags |-> NoReq]
  /\ srv = NoSrv(0)
  /\ ts  = [t \in Tags |-> "Unfetched"]
  /\ want = <<>>
  /\ vq  = {}
  /\ vol = [cur |-> 0, pd |-> {0}, ep |-> 0]
  /\ g   = [nw |-> 0, nr |-> 0, nf |-> 0, crash |-> 0, stop |-> 0, fail |-> 0,
            acked |-> {}, after |-> [w \in 1..MaxWrites |-> {}], must |-> {}, bad |-> "no"]

-----------------------------------------------------------------------------
\* Writes replaced by a write of S: acknowledged before that one was issued.
Over(S) == UNION {g.after[w] : w \in S}

Holding == {t \in Tags : (ts[t] = "Serving" /\ req[t].op # "F") \/ ts[t] \in {"CopyingIn", "CopyingOut"}}
Free    == Bufs - Cardinality(Holding)
Gone    == \A t \in Tags : ts[t] = "Withdrawn"

\* The host is told.  `ok` FALSE is an error.
Ended(t, v, ok) ==
  LET r == req[t] IN
  IF ~ok THEN [g EXCEPT !.bad = "error"]
  ELSE CASE r.op = "W" -> [g EXCEPT !.acked = @ \cup {r.v},
                                    !.must = IF r.fua THEN @ \cup {r.v} ELSE @]
         [] r.op = "F" -> [g EXCEPT !.must = @ \cup r.cov]
         [] r.op = "R" -> [g EXCEPT !.bad = IF v \in Over(r.cov) THEN "stale read" ELSE @]

-----------------------------------------------------------------------------
(* The host *)

Issue(t, r) ==
  /\ dev \in {"live", "quiesced"} /\ req[t] = NoReq
  /\ req' = [req EXCEPT ![t] = r]

IssueWrite(t, fua) ==
  /\ g.nw < MaxWrites
  /\ Issue(t, [op |-> "W", v |-> g.nw + 1, fua |-> fua, cov |-> {}, st |-> "new"])
  /\ g' = [g EXCEPT !.nw = @ + 1, !.after[g.nw + 1] = g.acked \cup {0}]
  /\ UNCHANGED <<dev, own, srv, ts, want, vq, vol>>

IssueRead(t) ==
  /\ g.nr < MaxReads
  /\ Issue(t, [op |-> "R", v |-> 0, fua |-> FALSE, cov |-> g.acked, st |-> "new"])
  /\ g' = [g EXCEPT !.nr = @ + 1]
  /\ UNCHANGED <<dev, own, srv, ts, want, vq, vol>>

\* Without the declared cache the block layer answers a flush by itself.
IssueFlush(t) ==
  /\ g.nf < MaxFlushes
  /\ IF FCache
     THEN /\ Issue(t, [op |-> "F", v |-> 0, fua |-> FALSE, cov |-> g.acked, st |-> "new"])
          /\ g' = [g EXCEPT !.nf = @ + 1]
     ELSE /\ dev \in {"live", "quiesced"} /\ g' = [g EXCEPT !.nf = @ + 1, !.must = @ \cup g.acked]
          /\ UNCHANGED req
  /\ UNCHANGED <<dev, own, srv, ts, want, vq, vol>>

-----------------------------------------------------------------------------
(* The driver *)

KOffer(t) ==
  /\ dev \in {"live", "stopping"} /\ own[t] = "driver" /\ req[t].st = "new"
  /\ own' = [own EXCEPT ![t] = "offered"]
  /\ req' = [req EXCEPT ![t].st = "out"]
  /\ UNCHANGED <<dev, srv, ts, want, vq, vol, g>>

KStart ==           \* START_DEV or END_USER_RECOVERY: waits for every tag
  /\ srv.up /\ srv.ctl = "start" /\ \A t \in Tags : own[t] = "driver"
  /\ dev' = "live" /\ srv' = [srv EXCEPT !.ctl = "started"]
  /\ UNCHANGED <<own, req, ts, want, vq, vol, g>>

KStartFails ==
  /\ srv.up /\ srv.ctl = "start" /\ g.fail < MaxFail
  /\ srv' = [srv EXCEPT !.ctl = "not started"] /\ g' = [g EXCEPT !.fail = @ + 1]
  /\ UNCHANGED <<dev, own, req, ts, want, vq, vol>>

KStop ==            \* no new request; those there are waited for
  /\ srv.up /\ srv.ctl = "stop" /\ dev \in {"live", "added", "quiesced"}
  /\ dev' = "stopping"
  /\ IF dev = "quiesced"          \* nobody to wait for: what was held ends with an error
     THEN /\ req' = [t \in Tags |-> NoReq]
          /\ g' = IF \E t \in Tags : req[t] # NoReq THEN [g EXCEPT !.bad = "error"] ELSE g
     ELSE UNCHANGED <<req, g>>
  /\ UNCHANGED <<own, srv, ts, want, vq, vol>>

KStopFails ==
  /\ srv.up /\ srv.ctl = "stop" /\ dev = "live" /\ ~srv.failed /\ g.fail < MaxFail
  /\ srv' = [srv EXCEPT !.ctl = "not stopped"] /\ g' = [g EXCEPT !.fail = @ + 1]
  /\ UNCHANGED <<dev, own, req, ts, want, vq, vol>>

KStopDone ==
  /\ srv.up /\ dev = "stopping" /\ \A t \in Tags : req[t] = NoReq
  /\ dev' = "dead" /\ srv' = [srv EXCEPT !.ctl = "stopped"]
  /\ own' = [t \in Tags |-> IF own[t] = "driver" THEN "aborted" ELSE own[t]]
  /\ UNCHANGED <<req, ts, want, vq, vol, g>>

KRemove ==
  /\ srv.up /\ srv.ctl = "remove" /\ dev \in {"dead", "none"}
  /\ dev' = "none" /\ srv' = [srv EXCEPT !.ctl = "removed"]
  /\ UNCHANGED <<own, req, ts, want, vq, vol, g>>

-----------------------------------------------------------------------------
(* The server's tags *)

\* Commands to the volume carry the epoch they were sent under.
Hand(t) == vq \cup {[e |-> srv.ep, t |-> t, op |-> req[t].op, v |-> req[t].v,
                     fua |-> req[t].fua /\ FFua, st |-> "sent"]}

\* COMMIT_AND_FETCH: the host is told, the driver has the tag again.
Commit(t, v, ok) ==
  /\ ts'  = [ts EXCEPT ![t] = "Committing"]
  /\ own' = [own EXCEPT ![t] = "driver"]
  /\ req' = [req EXCEPT ![t] = NoReq]
  /\ g'   = IF own[t] # "server" \/ req[t].st # "out"
            THEN [g EXCEPT !.bad = "completed twice"] ELSE Ended(t, v, ok)

Serve(t) ==         \* to the volume; a hasty server commits at once
  /\ vq' = Hand(t)
  /\ IF FAnswer \/ req[t].op # "W"
     THEN /\ ts' = [ts EXCEPT ![t] = "Serving"] /\ UNCHANGED <<own, req, g>>
     ELSE Commit(t, 0, TRUE)

See(t) ==
  /\ srv.up /\ own[t] = "offered" /\ ts[t] \in {"Fetching", "Committing"}
  /\ own' = [own EXCEPT ![t] = "server"]
  /\ IF req[t].op = "F"
     THEN /\ vq' = Hand(t) /\ ts' = [ts EXCEPT ![t] = "Serving"] /\ UNCHANGED want
     ELSE /\ ts' = [ts EXCEPT ![t] = "Wanting"] /\ want' = Append(want, t) /\ UNCHANGED vq
  /\ UNCHANGED <<dev, req, srv, vol, g>>

Take ==
  /\ srv.up /\ want # <<>> /\ ~srv.starved /\ Free > 0
  /\ want' = Tail(want)
  /\ LET t == Head(want) IN
     IF req[t].op = "W"
     THEN ts' = [ts EXCEPT ![t] = "CopyingIn"] /\ UNCHANGED <<own, req, vq, g>>
     ELSE Serve(t)
  /\ UNCHANGED <<dev, srv, vol>>

Deny ==
  /\ srv.up /\ want # <<>> /\ ~srv.starved /\ Free = 0
  /\ srv' = [srv EXCEPT !.starved = TRUE]
  /\ UNCHANGED <<dev, own, req, ts, want, vq, vol, g>>

Turn ==
  /\ srv.up /\ srv.starved /\ FTurn
  /\ srv' = [srv EXCEPT !.starved = FALSE]
  /\ UNCHANGED <<dev, own, req, ts, want, vq, vol, g>>

CopiedIn(t) ==
  /\ srv.up /\ ts[t] = "CopyingIn" /\ Serve(t)
  /\ UNCHANGED <<dev, srv, want, vol>>

\* The volume's answer: to this server, for what it serves now.
Answered(t) ==
  \E x \in vq :
    /\ srv.up /\ ts[t] = "Serving"
    /\ x.st = "done" /\ x.t = t /\ x.e = srv.ep
    /\ vq' = vq \ {x}
    /\ IF x.op = "R"
       THEN /\ ts' = [ts EXCEPT ![t] = "CopyingOut"]
            /\ req' = [req EXCEPT ![t].v = x.v] /\ UNCHANGED <<own, g>>
       ELSE Commit(t, 0, TRUE)
    /\ UNCHANGED <<dev, srv, want, vol>>

CopiedOut(t) ==
  /\ srv.up /\ ts[t] = "CopyingOut" /\ Commit(t, req[t].v, TRUE)
  /\ UNCHANGED <<dev, srv, want, vq, vol>>

Withdrawn(t) ==
  /\ srv.up /\ own[t] = "aborted"
  /\ IF FOnce THEN own' = [own EXCEPT ![t] = "none"] /\ ts' = [ts EXCEPT ![t] = "Withdrawn"]
     ELSE own' = [own EXCEPT ![t] = "driver"] /\ UNCHANGED ts
  /\ UNCHANGED <<dev, req, srv, want, vq, vol, g>>

-----------------------------------------------------------------------------
(* The server's life *)

SrvStart ==
  /\ ~srv.up /\ srv.ep <= MaxCrash /\ dev \in {"none", "quiesced"}
  /\ (dev = "none" => g.stop = 0)                \* nobody wants it any more
  /\ srv' = [NoSrv(srv.ep + 1) EXCEPT !.up = TRUE, !.phase = "Attaching",
                 !.origin = IF dev = "none" THEN "Created" ELSE "Recovered"]
  /\ UNCHANGED <<dev, own, req, ts, want, vq, vol, g>>

\* From here on nothing of an older epoch can land.
Attach ==
  /\ srv.up /\ srv.phase = "Attaching"
  /\ srv' = [srv EXCEPT !.phase = "Preparing"]
  /\ IF FFence THEN /\ vol' = [vol EXCEPT !.ep = srv.ep]
                    /\ vq' = {x \in vq : x.e >= srv.ep}
     ELSE UNCHANGED <<vol, vq>>
  /\ UNCHANGED <<dev, own, req, ts, want, g>>

LOpened ==          \* added, or its recovery begun; node open and mapped; all tags fetched
  /\ srv.up /\ srv.phase = "Preparing"
  /\ dev' = IF dev = "none" THEN "added" ELSE dev
  /\ srv' = [srv EXCEPT !.phase = "Starting", !.ctl = "start"]
  /\ ts'  = [t \in Tags |-> "Fetching"]
  /\ own' = [t \in Tags |-> "driver"]
  /\ UNCHANGED <<req, want, vq, vol, g>>

LStarted ==
  /\ srv.up /\ srv.phase = "Starting" /\ srv.ctl = "started"
  /\ srv' = IF Gone THEN [srv EXCEPT !.phase = "Closing", !.ctl = "-"]
            ELSE IF srv.stop THEN [srv EXCEPT !.phase = "Stopping", !.ctl = "stop"]
            ELSE [srv EXCEPT !.phase = "Live", !.ctl = "-"]
  /\ UNCHANGED <<dev, own, req, ts, want, vq, vol, g>>

LNotStarted ==
  /\ srv.up /\ srv.phase = "Starting" /\ srv.ctl = "not started"
  /\ srv' = IF srv.origin = "Created" \/ ~FKeep
            THEN [srv EXCEPT !.failed = TRUE, !.phase = "Stopping", !.ctl = "stop"]
            ELSE [srv EXCEPT !.phase = "Stranded", !.ctl = "-"]
  /\ UNCHANGED <<dev, own, req, ts, want, vq, vol, g>>

StopAsked ==
  /\ srv.up /\ g.stop < MaxStop /\ srv.phase \in {"Preparing", "Starting", "Live"}
  /\ g' = [g EXCEPT !.stop = @ + 1]
  /\ srv' = IF srv.phase = "Live" THEN [srv EXCEPT !.phase = "Stopping", !.ctl = "stop"]
            ELSE [srv EXCEPT !.stop = TRUE]
  /\ UNCHANGED <<dev, own, req, ts, want, vq, vol>>

LNotStopped ==
  /\ srv.up /\ srv.phase = "Stopping" /\ srv.ctl = "not stopped"
  /\ srv' = [srv EXCEPT !.phase = "Live", !.ctl = "-"]
  /\ UNCHANGED <<dev, own, req, ts, want, vq, vol, g>>

LClose ==
  /\ srv.up /\ srv.phase = "Stopping" /\ srv.ctl = "stopped" /\ (FOrder => Gone)
  /\ srv' = [srv EXCEPT !.phase = "Closing", !.ctl = "-"]
  /\ UNCHANGED <<dev, own, req, ts, want, vq, vol, g>>

LClosed ==
  /\ srv.up /\ srv.phase = "Closing"
  /\ srv' = [srv EXCEPT !.phase = "Removing", !.ctl = "remove"]
  /\ UNCHANGED <<dev, own, req, ts, want, vq, vol, g>>

LRemoved ==
  /\ srv.up /\ srv.phase = "Removing" /\ srv.ctl = "removed"
  /\ srv' = [srv EXCEPT !.phase = "Gone", !.ctl = "-"]
  /\ UNCHANGED <<dev, own, req, ts, want, vq, vol, g>>

Broke ==            \* a command that never should be is refused: the process has to exit
  /\ srv.up /\ srv.phase \in {"Starting", "Live", "Stopping"} /\ g.fail < MaxFail
  /\ g' = [g EXCEPT !.fail = @ + 1]
  /\ srv' = [srv EXCEPT !.phase = "Stranded", !.ctl = "-"]
  /\ UNCHANGED <<dev, own, req, ts, want, vq, vol>>

\* The process is gone, and the driver has taken its commands back.  What it had handed out is kept
\* for the next server, unless the device was being stopped.
Die ==
  LET held(t) == req[t].st = "out" IN
  /\ srv' = [NoSrv(srv.ep) EXCEPT !.phase = "Gone"]
  /\ ts'  = [t \in Tags |-> "Unfetched"] /\ want' = <<>>
  /\ own' = [t \in Tags |-> "none"]
  /\ IF dev \in {"live", "quiesced"}
     THEN /\ dev' = "quiesced"
          /\ req' = [t \in Tags |-> IF ~held(t) THEN req[t]
                                    ELSE IF FReissue THEN [req[t] EXCEPT !.st = "new"] ELSE NoReq]
          /\ LET lost == ~FReissue /\ \E t \in Tags : held(t) IN
             g' = [g EXCEPT !.bad = IF lost THEN "error" ELSE @, !.crash = @ + 1]
     ELSE /\ dev' = "none" /\ req' = [t \in Tags |-> NoReq]
          /\ g' = [g EXCEPT !.crash = @ + 1]
  /\ UNCHANGED <<vq, vol>>

Kill == srv.up /\ g.crash < MaxCrash /\ srv.phase # "Gone" /\ Die
Exit == srv.up /\ srv.phase = "Stranded" /\ Die

-----------------------------------------------------------------------------
(* The volume *)

VolDo(x) ==
  /\ x.st = "sent" /\ (FFence => x.e = vol.ep)
  /\ vol' = CASE x.op = "W" -> [vol EXCEPT !.cur = x.v, !.pd = IF x.fua THEN {x.v} ELSE @ \cup {x.v}]
              [] x.op = "F" -> [vol EXCEPT !.pd = {vol.cur}]
              [] x.op = "R" -> vol
  /\ vq' = (vq \ {x}) \cup
           IF x.e = srv.ep /\ srv.up /\ ts[x.t] = "Serving"
           THEN {[x EXCEPT !.st = "done", !.v = IF x.op = "R" THEN vol.cur ELSE @]} ELSE {}
  /\ UNCHANGED <<dev, own, req, srv, ts, want, g>>

-----------------------------------------------------------------------------
Server ==
  \/ Take \/ Deny \/ Turn \/ Attach \/ SrvStart
  \/ LOpened \/ LStarted \/ LNotStarted \/ LNotStopped \/ LClose \/ LClosed \/ LRemoved \/ Exit
  \/ \E t \in Tags : See(t) \/ CopiedIn(t) \/ Answered(t) \/ CopiedOut(t) \/ Withdrawn(t)
Driver == KStart \/ KStop \/ KStopDone \/ KRemove \/ \E t \in Tags : KOffer(t)
Volume == \E x \in vq : VolDo(x)
Faults == Kill \/ KStartFails \/ KStopFails \/ Broke
Host   == StopAsked \/ \E t \in Tags : IssueRead(t) \/ IssueFlush(t) \/ \E f \in BOOLEAN : IssueWrite(t, f)

Next == Server \/ Driver \/ Volume \/ Faults \/ Host
Spec == Init /\ [][Next]_vars

\* Nobody sleeps for ever who can act; each tag is served in its turn.
Fair ==
  /\ WF_vars(Driver) /\ WF_vars(Volume)
  /\ WF_vars(SrvStart) /\ WF_vars(Attach) /\ WF_vars(Exit)
  /\ WF_vars(LOpened) /\ WF_vars(LStarted) /\ WF_vars(LNotStarted) /\ WF_vars(LNotStopped)
  /\ WF_vars(LClose) /\ WF_vars(LClosed) /\ WF_vars(LRemoved)
  /\ WF_vars(Turn) /\ SF_vars(Take)
  /\ \A t \in Tags : WF_vars(See(t)) /\ WF_vars(CopiedIn(t)) /\ WF_vars(Answered(t))
                     /\ WF_vars(CopiedOut(t)) /\ WF_vars(Withdrawn(t)) /\ WF_vars(KOffer(t))
FairSpec == Spec /\ Fair

-----------------------------------------------------------------------------
(* Properties *)

NoBad  == g.bad = "no"
ReadOK == vol.cur \notin Over(g.acked)
DurOK  == vol.pd \cap Over(g.must) = {}

\* A tag is in one place, and both sides agree where.
TagOK ==
  \A t \in Tags :
    /\ ts[t] \in {"Fetching", "Committing"} => own[t] \in {"driver", "offered", "aborted"}
    /\ ts[t] \in {"Wanting", "CopyingIn", "Serving", "CopyingOut"} => own[t] = "server" /\ req[t].st = "out"
    /\ ts[t] \in {"Unfetched", "Withdrawn"} => own[t] = "none"
    /\ own[t] \in {"offered", "server"} => req[t].st = "out"
    /\ own[t] = "driver" => dev # "dead"
    /\ srv.phase \in {"Closing", "Removing"} => own[t] = "none"

BufOK == Free >= 0 /\ \A i \in 1..Len(want) : ts[want[i]] = "Wanting"

Ends == \A t \in Tags : (req[t] # NoReq) ~> (req[t] = NoReq)

\* Reachability: these are meant to be broken.
NeverReissued == ~(srv.ep = 2 /\ g.acked # {} /\ g.crash > 0 /\ \E t \in Tags : ts[t] = "Serving")
NeverGone     == ~(srv.phase = "Gone" /\ srv.up /\ g.acked # {})
Symm == Permutations(Tags)
=============================================================================
