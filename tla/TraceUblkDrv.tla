---------------------------- MODULE TraceUblkDrv ----------------------------
(***************************************************************************)
(* Runs of the real tag and life machines are behaviours of UblkDrv.        *)
(*                                                                          *)
(* TraceData.tla, which is generated, holds Traces: sequences of records.   *)
(* Each record must be explained by one action of the model; nothing is     *)
(* silent.  The driver, the volume and the host around the machines are     *)
(* played by ublk/examples/tag_trace.                                       *)
(*                                                                          *)
(*   action of the model      event        logged where                     *)
(*   IssueWrite, IssueRead,   write, read, World::host_asks                 *)
(*   IssueFlush               flush                                         *)
(*   KOffer                   offer        World::driver_offers             *)
(*   See                      see          TagEvent::Offered, with the      *)
(*                                         TagState that follows            *)
(*   Take, Deny               take, deny   TagEffect::TakeBuffer answered   *)
(*                                         by BufferTaken, BufferDenied     *)
(*   Turn                     turn         TagEvent::TurnEnded (skipped if  *)
(*                                         nobody starved)                  *)
(*   CopiedIn, CopiedOut      in, out      TagEvent::CopiedIn, CopiedOut    *)
(*   VolDo                    does         the played volume                *)
(*   Answered                 answered     TagEvent::Answered               *)
(*   Withdrawn                withdrawn    TagEvent::Withdrawn              *)
(*   SrvStart, Attach         server,      World::server_starts, attach     *)
(*                            attach                                        *)
(*   LOpened, LStarted,       life         Life::step, with the Phase       *)
(*   LNotStarted, StopAsked,               before and after                 *)
(*   LNotStopped, LClose,                                                   *)
(*   LClosed, LRemoved                                                      *)
(*   KStart, KStartFails,     starts, start fails, stopping, stop fails,    *)
(*   KStop, KStopFails,       stopped, removes: the played driver           *)
(*   KStopDone, KRemove                                                     *)
(*   Kill, Exit               kill, exit   World::life_goes_on              *)
(***************************************************************************)
EXTENDS UblkDrv, TraceData

VARIABLES k, l           \* which trace, and its next event
tvars == <<dev, own, req, srv, ts, want, vq, vol, g, k, l>>

Ev == Traces[k][l]

Life ==
  /\ srv.phase = (IF Ev.was = "Preparing" /\ srv.phase = "Attaching" THEN "Attaching" ELSE Ev.was)
  /\ LOpened \/ LStarted \/ LNotStarted \/ StopAsked \/ LNotStopped \/ LClose \/ LClosed \/ LRemoved
  /\ srv'.phase = Ev.ph

Does ==
  \E x \in vq :
    /\ x.t = Ev.t /\ x.e = Ev.e /\ VolDo(x)
    /\ x.op = "W" => Ev.v = x.v
    /\ x.op = "R" => Ev.v = vol.cur

Step ==
  CASE Ev.a = "write"       -> IssueWrite(Ev.t, Ev.fua)
    [] Ev.a = "read"        -> IssueRead(Ev.t)
    [] Ev.a = "flush"       -> IssueFlush(Ev.t)
    [] Ev.a = "offer"       -> KOffer(Ev.t)
    [] Ev.a = "see"         -> See(Ev.t) /\ ts'[Ev.t] = Ev.ts
    [] Ev.a = "take"        -> Take /\ Head(want) = Ev.t /\ ts'[Ev.t] = Ev.ts
    [] Ev.a = "deny"        -> Deny /\ Head(want) = Ev.t
    [] Ev.a = "turn"        -> IF srv.starved THEN Turn ELSE UNCHANGED vars
    [] Ev.a = "in"          -> CopiedIn(Ev.t) /\ ts'[Ev.t] = Ev.ts
    [] Ev.a = "out"         -> CopiedOut(Ev.t) /\ ts'[Ev.t] = Ev.ts
    [] Ev.a = "does"        -> Does
    [] Ev.a = "answered"    -> Answered(Ev.t) /\ ts'[Ev.t] = Ev.ts
    [] Ev.a = "withdrawn"   -> Withdrawn(Ev.t) /\ ts'[Ev.t] = Ev.ts
    [] Ev.a = "server"      -> SrvStart
    [] Ev.a = "attach"      -> Attach
    [] Ev.a = "life"        -> Life
    [] Ev.a = "starts"      -> KStart
    [] Ev.a = "start fails" -> KStartFails
    [] Ev.a = "stopping"    -> KStop
    [] Ev.a = "stop fails"  -> KStopFails
    [] Ev.a = "stopped"     -> KStopDone
    [] Ev.a = "removes"     -> KRemove
    [] Ev.a = "kill"        -> Kill
    [] Ev.a = "exit"        -> Exit

TInit == Init /\ k \in 1..Len(Traces) /\ l = 1
TNext == l <= Len(Traces[k]) /\ l' = l + 1 /\ k' = k /\ Step
TSpec == TInit /\ [][TNext]_tvars

\* Always true; tells the runner how far each trace was followed.
ASSUME \A i \in 1..Len(Traces) : TLCSet(i, 0)
Progress == IF l > TLCGet(k) THEN TLCSet(k, l) /\ PrintT(<<"followed", k, l - 1, Len(Traces[k])>>) ELSE TRUE
=============================================================================
