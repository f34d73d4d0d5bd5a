---------------------------- MODULE TraceResilver ----------------------------
(***************************************************************************)
(* Runs of the real volume core with faults are behaviours of               *)
(* ResilverRecovery: one block, two or three stores, clients one after the   *)
(* other.  The core runs in its own test world, or in a whole simulated      *)
(* cluster (tools/ubs-sim): then it is one block of one shard among many.    *)
(*                                                                          *)
(* TraceData.tla, which is generated, holds Traces: sequences of records.   *)
(* A record is explained by the action of its line; actions of the last     *)
(* line are silent: what happens out of the client's sight, or takes no      *)
(* command.  TLC finds a moment that fits.                                   *)
(*                                                                          *)
(*   action of the model   event      logged where                          *)
(*                                    (volume/src/core/test/world/record.rs, *)
(*                                    tools/ubs-sim/src/recorder.rs)         *)
(*   StartWrite            write,     the first command of a host's write    *)
(*                         zero       or discard                             *)
(*   Land                  land       an answer to Purpose::HostWrite        *)
(*   FlushStore, FlushT    flush      an answer to Purpose::Flush, and       *)
(*                                    whether all that was answered before   *)
(*                                    had been when it left; a durable write *)
(*   AckWrite, AckFlush    ack,       Effect::Complete                       *)
(*                         flushed                                           *)
(*   (no step)             read       Effect::Complete, with the value       *)
(*   Reopen                open       TraceEvent::Open, and whether the      *)
(*                                    store is suspect now                   *)
(*   ConnBreak             break      TraceEvent::ConnBreak                  *)
(*   Propose               propose    TraceEvent::Propose                    *)
(*   Exclude, Join         exclude,   TraceEvent::Learn; if the client dies  *)
(*                         join       first, what metad had recorded         *)
(*   Attach                attach     TraceEvent::Establish without regions, *)
(*                                    or the first Reconciled                *)
(*   ClientGone            gone       the client was killed or failed        *)
(*   StoreCrash            crash      the power cut, with what it left; in a *)
(*                                    cluster when the store is open again   *)
(*   DiskLoss              loss       a blank disk in place of the store's   *)
(*   StartRs               resilver   TraceEvent::StartRs                    *)
(*   AskMarks, AskPresence marks,     answers to Purpose::ResilverMarks,     *)
(*                         presence   ResilverPresence                       *)
(*   Plan, PlanBlank       planned    TraceEvent::Planned                    *)
(*   CopyRead, CopyLand    source,    answers to Purpose::CopyRead,          *)
(*                         copied     CopyWrite                              *)
(*   Complete              complete   an answer to Purpose::ResilverComplete *)
(*   ConnBreak             drop       TraceEvent::DropRs                     *)
(*   Stable                stable     TraceEvent::Stable; marks may stay     *)
(*   (more of AskMarks,    marks,     what is known of blocks that are not   *)
(*   Reopen)               open       followed: the region may be marked, a  *)
(*                                    store suspect, on their account        *)
(*   LandLate, CopyLate, JoinLate, HalfAttach, AskPresenceOf, Inherit:       *)
(*   silent                                                                  *)
(***************************************************************************)
EXTENDS ResilverRecovery, Sequences, TraceData

VARIABLES
  k, l,       \* which trace, and its next event
  owed        \* a write that is done, and the host has not been told: the members are not stamped yet
tvars == <<d, se, cl, w, cp, rs, g, k, l, owed>>

Ev == Traces[k][l]
B  == CHOOSE b \in Blocks : TRUE
Reads(x) == IF x = -1 THEN 0 ELSE x

\* The target's last flush left before a write to it was answered.
FlushTPart == /\ cl.up /\ rs.ph = "copying" /\ Copied /\ rs.t \in Usable
              /\ rs' = [rs EXCEPT !.ph = "inheriting"]
              /\ UNCHANGED <<d, se, cl, w, cp, g>>

\* Another block of the region was written.
AskMarksOfOthers(s) ==
  /\ Others /\ cl.up /\ rs.ph = "marks" /\ s \in rs.wait \cap se
  /\ d' = [d EXCEPT ![s].mark = Regions]
  /\ rs' = IF s = rs.t THEN [rs EXCEPT !.wait = @ \ {s}, !.own = Regions]
           ELSE [rs EXCEPT !.wait = @ \ {s}, !.inh = Regions]
  /\ UNCHANGED <<se, cl, w, cp, g>>

\* What it lost were writes to other blocks.
ReopenOfOthers(s) ==
  /\ Others /\ cl.up /\ s \in Counts \ se /\ cl.inc[s] \notin {0, d[s].inc} /\ cl.unf[s] = {}
  /\ se' = se \cup {s}
  /\ cl' = [cl EXCEPT !.inc[s] = d[s].inc, !.sus = @ \cup {s}]
  /\ UNCHANGED <<d, w, cp, rs, g>>

Nothing == UNCHANGED vars

\* A member has restarted and the client has not heard of it yet; when it does, it gives this target up.
StartRsUnheard(s) == s \in se \ cl.isr /\ ~(cl.isr \subseteq se) /\ Nothing

Told(x) == owed' = x

Step ==
  CASE Ev.a \in {"write", "zero"}
                         -> owed = 0 /\ StartWrite(B, Ev.a = "zero") /\ w'[B].n = Ev.v /\ Told(0)
    [] Ev.a = "ack"      -> IF owed = Ev.v THEN Nothing /\ Told(0)
                            ELSE owed = 0 /\ AckWrite(B) /\ w[B].n = Ev.v /\ Told(0)
    [] Ev.a = "flushed"  -> /\ Told(owed)    \* before all is equal: about nothing
                            /\ (~cl.up /\ Nothing) \/ AckFlush \/ (g.leg[B] = {n \in g.leg[B] : n >= cl.cur[B]} /\ Nothing)
    [] Ev.a = "read"     -> cl.up /\ Reads(Cont(cl.cur[B])) = Ev.v /\ Nothing /\ Told(owed)
    [] Ev.a = "open"     -> /\ (Reopen(Ev.s) /\ (Ev.s \in cl'.sus) = Ev.sus) \/ (Ev.sus /\ ReopenOfOthers(Ev.s))
                            /\ Told(owed)
    [] Ev.a = "break"    -> (IF Ev.s \in se THEN ConnBreak(Ev.s) ELSE Nothing) /\ Told(owed)
    [] Ev.a = "propose"  -> Propose(cl.isr \ Ev.m) /\ Told(owed)
    [] Ev.a = "exclude"  -> Exclude(cl.isr \ Ev.m) /\ Told(owed)
    [] Ev.a = "join"     -> rs.t = Ev.s /\ Join /\ Told(owed)
    [] Ev.a = "attach"   -> (\E src \in Ev.m : Attach(Ev.m, src)) /\ Reads(Cont(cl'.cur[B])) = Ev.v /\ Told(0)
    [] Ev.a = "gone"     -> ClientGone /\ Told(0)
    [] Ev.a = "crash"    -> StoreCrash(Ev.s) /\ Reads(Cont(d'[Ev.s].v[B])) = Ev.v /\ Told(owed)
    [] Ev.a = "loss"     -> DiskLoss(Ev.s) /\ Told(owed)
    [] Ev.a = "resilver" -> (StartRs(Ev.s) \/ StartRsUnheard(Ev.s)) /\ Told(owed)
    [] Ev.a = "planned"  -> rs.t = Ev.s /\ (Plan \/ PlanBlank) /\ rs'.ph = "copying" /\ Told(owed)
    [] Ev.a = "drop"     -> /\ IF rs.t = Ev.s /\ Ev.s \in se THEN ConnBreak(Ev.s) ELSE rs = NoRs /\ Nothing
                            /\ Told(owed)
    [] Ev.a = "land"     -> Land(Ev.s, B) /\ Told(owed)
    [] Ev.a = "flush"    -> /\ IF ~Ev.c THEN Nothing \/ (rs.t = Ev.s /\ FlushTPart)
                               ELSE IF cl.unf[Ev.s] # {} THEN FlushStore(Ev.s) \/ (rs.t = Ev.s /\ FlushT)
                               ELSE Nothing \/ (rs.t = Ev.s /\ FlushT)
                            /\ Told(owed)
    [] Ev.a = "marks"    -> (IF Ev.s \in rs.wait THEN AskMarks(Ev.s) \/ AskMarksOfOthers(Ev.s) ELSE Nothing)
                            /\ Told(owed)
    [] Ev.a = "presence" -> (IF Ev.s \in rs.wait THEN AskPresence(Ev.s) ELSE Nothing) /\ Told(owed)
    [] Ev.a = "source"   -> CopyRead(B, Ev.s) /\ Told(owed)
    [] Ev.a = "copied"   -> rs.t = Ev.s /\ CopyLand(B) /\ Told(owed)
    [] Ev.a = "complete" -> rs.t = Ev.s /\ Complete /\ Told(owed)
    [] Ev.a = "stable"   -> (Stable \/ Nothing) /\ Told(owed)

\* A session ends before the store leaves, also when the code says both at once.
Leaves == Ev.a \in {"exclude", "propose", "crash"}
          /\ \E s \in IF Ev.a = "crash" THEN {Ev.s} ELSE cl.isr \ Ev.m : s \in se /\ ConnBreak(s)

Silent ==
  \/ /\ Told(owed)
     /\ \/ \E s \in Stores : LandLate(s, B) \/ AskPresenceOf(s) \/ \E src \in Stores : HalfAttach(src, s, B)
        \/ CopyLate(B) \/ JoinLate \/ Inherit \/ Leaves
        \/ (Plan /\ rs'.ph = "presence")
  \/ (Ev.a # "ack" /\ AckWrite(B) /\ Told(w[B].n))

TInit == InitWith(NoClient, {}) /\ k \in 1..Len(Traces) /\ l = 1 /\ owed = 0
TNext == /\ l <= Len(Traces[k]) /\ k' = k
         /\ \/ l' = l + 1 /\ Step
            \/ l' = l /\ Silent
TSpec == TInit /\ [][TNext]_tvars

\* How often something happened tells no states apart.
View == <<d, se, cl, w, cp, rs, g.nw, g.isr, g.leg, g.bad, k, l, owed>>

\* Always true; tells the runner how far each trace was followed.
ASSUME \A i \in 1..Len(Traces) : TLCSet(i, 0)
Progress == IF l > TLCGet(k) THEN TLCSet(k, l) /\ PrintT(<<"followed", k, l - 1, Len(Traces[k])>>) ELSE TRUE
\* A trace that was followed to its end needs no second explanation.
Wanted == TLCGet(k) <= Len(Traces[k])
=============================================================================
