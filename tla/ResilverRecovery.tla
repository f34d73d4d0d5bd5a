-------------------------- MODULE ResilverRecovery --------------------------
(***************************************************************************)
(* Several blocks and regions on R stores, and how a store that was out     *)
(* comes back: which blocks it is thought to miss, how they are copied       *)
(* while the host writes and discards, and what happens when the target,     *)
(* its sources or the client fail on the way.                                *)
(*                                                                          *)
(* What it shows.  A member that may be read holds the last acknowledged    *)
(* write of every block (ReadOK).  Whatever subset of its volatile cache a   *)
(* member loses, every block keeps a legal value: nothing flushed is lost    *)
(* (DurOK).  A region that no member has marked is equal and durable on all  *)
(* (ConvOK).  An attach finds only legal values (NoBad).  When faults stop,  *)
(* every store comes back into the in-sync set (Heals).                      *)
(*                                                                          *)
(* Abstractions.  Membership changes and epochs are atomic, a reconcile is   *)
(* one atomic and durable step, and a command takes effect and is answered   *)
(* at once or is lost with its session: what happens in between is           *)
(* ReplicatedShard's.  A write is in flight to each store separately.  A     *)
(* crash keeps, block by block, any value written since the last flush.      *)
(* Disks are lost only while another member is whole.  A value is the        *)
(* number of its write; a write in g.z is a discard.  A block that was never *)
(* written on a store is absent; absent and discarded blocks read the same.  *)
(*                                                                          *)
(*   here                         code                                       *)
(*   StartRs, rs.ph               volume/src/core/resilver.rs start_resilver,*)
(*                                ResilverPhase                              *)
(*   AskMarks, AskPresence, Plan  on_resilver_marks, on_presence, plan,      *)
(*                                planned                                    *)
(*   CopyRead, CopyLand           copy.rs on_copy_read, on_copy_written      *)
(*   FlushT, Inherit, Complete,   copy_more, add_marks, on_resilver_step,    *)
(*   Join, DropRs                 resilver_joined, drop_resilver             *)
(*   StartWrite, Land, AckWrite   on_host.rs, on_write.rs                    *)
(*   Reopen, Exclude, Stable      on_path.rs, degrade.rs, stable.rs          *)
(*   LandLate, CopyLate, JoinLate what a dead client had on its way           *)
(*   dirty, wit, pf, unf, sus     Leg::dirty, witnessed, planned_for,        *)
(*                                unflushed, suspect                         *)
(***************************************************************************)
EXTENDS Integers, FiniteSets, TLC

CONSTANTS
  Stores, Blocks,
  RegionOf,      \* region of each block: "own" (one each) or "one" (all in one)
  Written,       \* blocks that hold data at the start; the others are absent
  MaxWrites,
  Discards,      \* whether writes may be discards
  MaxCrash,      \* store crashes
  MaxBreak,      \* connection losses
  MaxLoss,       \* disks swapped
  MaxAttach,     \* clients, one after the other
  FLock,         \* a copy excludes writes to its block
  FOwn,          \* the target's own marks count
  FInherit,      \* the target takes over its sources' marks
  FFlush,        \* the target is flushed before it joins
  FLost,         \* what a store that is out lost unflushed is dirty again
  FBlank,        \* a blank target is planned from what the sources hold
  FOwnPresence,  \* what a blank target holds counts, too
  FInflight,     \* writes under way when a resilver starts go to the target
  FSticky,       \* marks are kept while a member is out
  FZeroMark,     \* a blank store marks what is zeroed although nothing changes
  FInc           \* a member that lost unflushed writes is suspect

VARIABLES
  d,     \* store [v, pd, mark, inc, blank]: v and pd per block
  se,    \* stores with a session of the current client
  cl,    \* the client
  w,     \* the write in flight on each block
  cp,    \* the copy in flight on each block
  rs,    \* the resilver
  g      \* ghosts and budgets

vars == <<d, se, cl, w, cp, rs, g>>

Absent == -1
NoW    == [n |-> -9, done |-> {}]
NoRs   == [t |-> "none", ph |-> "none", wait |-> {}, inh |-> {}, own |-> {}]
Region(b) == IF RegionOf = "one" THEN "r" ELSE b
Regions   == {Region(b) : b \in Blocks}
Of(rr)    == {b \in Blocks : Region(b) \in rr}

NoClient == [up |-> FALSE, isr |-> {}, out |-> {}, cur |-> [b \in Blocks |-> 0],
             unf |-> [s \in Stores |-> {}], dirty |-> [s \in Stores |-> {}],
             wit |-> {}, pf |-> [s \in Stores |-> 0], inc |-> [s \in Stores |-> 0], sus |-> {}]

V0(b) == IF b \in Written THEN 0 ELSE Absent

InitWith(client, sessions) ==
  /\ d  = [s \in Stores |-> [v |-> [b \in Blocks |-> V0(b)], pd |-> [b \in Blocks |-> {V0(b)}],
                             mark |-> {}, inc |-> 1, blank |-> FALSE]]
  /\ se = sessions
  /\ cl = client
  /\ w  = [b \in Blocks |-> NoW]
  /\ cp = [b \in Blocks |-> -9]
  /\ rs = NoRs
  /\ g  = [nw |-> 0, z |-> {}, isr |-> Stores, crash |-> 0, brk |-> 0, loss |-> 0, att |-> 1,
           leg |-> [b \in Blocks |-> {V0(b)}], bad |-> "no"]

Init == InitWith([NoClient EXCEPT !.up = TRUE, !.isr = Stores, !.wit = Stores,
                    !.cur = [b \in Blocks |-> V0(b)], !.inc = [s \in Stores |-> 1]], Stores)

-----------------------------------------------------------------------------
Cont(x)  == IF x = Absent \/ x \in g.z THEN -1 ELSE x       \* what a read sees
Target   == IF rs = NoRs THEN {} ELSE {rs.t}
Joining  == IF rs.ph = "joining" THEN {rs.t} ELSE {}     \* metad may have taken it in already
Counts   == cl.isr \cup Joining
WS       == cl.isr \cup Target
Usable   == se \ cl.sus
Idle(b)  == w[b] = NoW /\ cp[b] = -9

\* A write arrives at a store.  Zeroes on zeroes change nothing and mark nothing, but on a blank
\* store, which comes to differ from those that have data there and have not zeroed it yet.
Store(s, b, n) ==
  IF Cont(n) = -1 /\ Cont(d[s].v[b]) = -1
  THEN IF FZeroMark /\ d[s].blank THEN [d EXCEPT ![s].mark = @ \cup {Region(b)}] ELSE d
  ELSE [d EXCEPT ![s].v[b] = n, ![s].pd[b] = @ \cup {n}, ![s].mark = @ \cup {Region(b)}]

-----------------------------------------------------------------------------
(* The host *)

StartWrite(b, z) ==
  /\ cl.up /\ w[b] = NoW /\ (FLock => cp[b] = -9) /\ g.nw < MaxWrites
  /\ g' = [g EXCEPT !.nw = @ + 1, !.z = IF z THEN @ \cup {g.nw + 1} ELSE @,
                    !.leg[b] = @ \cup {g.nw + 1}]
  /\ w' = [w EXCEPT ![b] = [n |-> g.nw + 1, done |-> {}]]
  /\ cl' = [cl EXCEPT !.dirty = [s \in Stores |-> IF s \in WS THEN @[s] ELSE @[s] \cup {b}]]
  /\ UNCHANGED <<d, se, cp, rs>>

Land(s, b) ==
  /\ cl.up /\ w[b] # NoW /\ s \in (WS \cap Usable) \ w[b].done
  /\ d' = Store(s, b, w[b].n)
  /\ w' = [w EXCEPT ![b].done = @ \cup {s}]
  /\ cl' = [cl EXCEPT !.unf[s] = @ \cup {b}, !.dirty[s] = IF s \in Target THEN @ \ {b} ELSE @]
  /\ UNCHANGED <<se, cp, rs, g>>

AckWrite(b) ==
  /\ cl.up /\ w[b] # NoW /\ WS \subseteq w[b].done
  /\ cl' = [cl EXCEPT !.cur[b] = w[b].n]
  /\ w' = [w EXCEPT ![b] = NoW]
  /\ UNCHANGED <<d, se, cp, rs, g>>

\* One store's flush; what completed on it before is covered.
FlushStore(s) ==
  /\ cl.up /\ s \in WS \cap Usable /\ cl.unf[s] # {} /\ rs.ph # "flushing"
  /\ d' = [d EXCEPT ![s].pd = [b \in Blocks |-> {d[s].v[b]}]]
  /\ cl' = [cl EXCEPT !.unf[s] = {}]
  /\ UNCHANGED <<se, w, cp, rs, g>>

\* A store that cannot be reached but has everything flushed does not hold it up.
AckFlush ==
  /\ cl.up /\ WS \cap cl.sus = {} /\ \A s \in WS : cl.unf[s] = {}
  /\ \E b \in Blocks : g.leg[b] # {n \in g.leg[b] : n >= cl.cur[b]}
  /\ g' = [g EXCEPT !.leg = [b \in Blocks |-> {n \in g.leg[b] : n >= cl.cur[b]}]]
  /\ UNCHANGED <<d, se, cl, w, cp, rs>>

Stable ==
  /\ cl.up /\ rs = NoRs /\ cl.out = {} /\ (FSticky => cl.isr = Stores)
  /\ cl.isr \subseteq Usable /\ \A s \in cl.isr : cl.unf[s] = {}
  /\ \A b \in Blocks : w[b] = NoW
  /\ \E s \in cl.isr : d[s].mark # {}
  /\ d' = [s \in Stores |-> IF s \in cl.isr THEN [d[s] EXCEPT !.mark = {}] ELSE d[s]]
  /\ UNCHANGED <<se, cl, w, cp, rs, g>>

-----------------------------------------------------------------------------
(* Faults and sessions *)

\* The session with s is over: its answers do not count for what is going on.  A target is given up
\* with it, unless metad was asked to take it in.
WithoutW(s) == [b \in Blocks |-> IF w[b] = NoW THEN NoW ELSE [w[b] EXCEPT !.done = @ \ {s}]]
Dropped(s)  == rs # NoRs /\ (rs.t = s \/ rs.ph = "marks") /\ rs.ph # "joining"
Ends(s)     == IF Dropped(s) THEN {s, rs.t} ELSE {s}
EndSession(s) ==
  /\ se' = se \ Ends(s)
  /\ IF Dropped(s)
     THEN /\ rs' = NoRs /\ cp' = [b \in Blocks |-> -9]
          /\ w' = [b \in Blocks |-> IF w[b] = NoW THEN NoW ELSE [w[b] EXCEPT !.done = @ \ {s, rs.t}]]
          /\ cl' = [cl EXCEPT !.dirty[rs.t] = @ \cup {b \in Blocks : w[b] # NoW /\ (s = rs.t \/ rs.t \notin w[b].done)}]
     ELSE /\ w' = WithoutW(s)
          /\ rs' = IF rs.ph = "presence" /\ s \in rs.wait THEN [rs EXCEPT !.wait = {"again"}] ELSE rs
          /\ UNCHANGED <<cp, cl>>

StoreCrash(s) ==
  /\ g.crash < MaxCrash
  /\ g' = [g EXCEPT !.crash = @ + 1]
  /\ \E f \in [Blocks -> UNION {d[s].pd[b] : b \in Blocks}] :
       /\ \A b \in Blocks : f[b] \in d[s].pd[b]
       /\ d' = [d EXCEPT ![s].v = f, ![s].pd = [b \in Blocks |-> {f[b]}], ![s].inc = @ + 1]
  /\ IF s \in se THEN EndSession(s) ELSE UNCHANGED <<se, cl, w, cp, rs>>

\* What was on its way to a store of the session that ends: writes, and copies to a target.
Unheard(s) == {<<t, b>> \in Ends(s) \X Blocks :
                 \/ w[b] # NoW /\ t \in WS \ w[b].done
                 \/ rs # NoRs /\ rs.t = t /\ cp[b] # -9}
Arrives(t, b) == IF w[b] # NoW /\ t \in WS \ w[b].done THEN Store(t, b, w[b].n) ELSE Store(t, b, cp[b])

\* With or without a last command having landed; at most one of each store, which is enough.
ConnBreak(s) ==
  /\ s \in se /\ g.brk < MaxBreak
  /\ g' = [g EXCEPT !.brk = @ + 1]
  /\ \E f \in [Ends(s) -> Blocks \cup {0}] :
       /\ \A t \in Ends(s) : f[t] # 0 => <<t, f[t]>> \in Unheard(s)
       /\ d' = [t \in Stores |-> IF t \in Ends(s) /\ f[t] # 0 THEN Arrives(t, f[t])[t] ELSE d[t]]
  /\ EndSession(s)

DiskLoss(s) ==
  /\ g.loss < MaxLoss
  /\ \E q \in g.isr \ {s} : ~d[q].blank /\ (cl.up => q \in cl.isr \ UNION cl.out)
  /\ g' = [g EXCEPT !.loss = @ + 1]
  /\ d' = [d EXCEPT ![s] = [v |-> [b \in Blocks |-> Absent], pd |-> [b \in Blocks |-> {Absent}],
                            mark |-> {}, inc |-> d[s].inc + 1, blank |-> TRUE]]
  /\ IF s \in se THEN EndSession(s) ELSE UNCHANGED <<se, cl, w, cp, rs>>

\* A suspect is told by its incarnation; a blank member, too.  What was completed and not flushed is
\* dirty again.
Reopen(s) ==
  LET changed == cl.inc[s] # 0 /\ cl.inc[s] # d[s].inc
      lost == IF changed THEN cl.unf[s] ELSE {}
      bad  == s \in Counts /\ (d[s].blank \/ (FInc /\ lost # {}))
  IN /\ cl.up /\ s \notin se
     /\ se' = se \cup {s}
     /\ cl' = [cl EXCEPT !.inc[s] = d[s].inc, !.unf[s] = IF changed THEN {} ELSE @,
                         !.dirty[s] = IF FLost THEN @ \cup lost ELSE @,
                         !.sus = IF bad THEN @ \cup {s} ELSE @]
     /\ UNCHANGED <<d, w, cp, rs, g>>

\* metad is asked to record the membership without these; what happens to the others before it has does
\* not matter, because acknowledgements need everybody until then.  If it does, another removal is asked
\* for, and either may be recorded.
Propose(out) ==
  /\ cl.up /\ Joining = {} /\ out \notin cl.out
  /\ out # {} /\ out \subseteq cl.isr \ Usable /\ (cl.isr \ out) \cap Usable # {}
  /\ cl' = [cl EXCEPT !.out = @ \cup {out}]
  /\ UNCHANGED <<d, se, w, cp, rs, g>>

Exclude(out) ==
  /\ cl.up /\ out \in cl.out
  /\ cl' = [cl EXCEPT !.isr = @ \ out, !.sus = @ \ out, !.out = {},
                      !.dirty = [s \in Stores |-> IF s \notin out THEN @[s]
                                  ELSE @[s] \cup {b \in Blocks : w[b] # NoW /\ s \notin w[b].done}]]
  /\ g' = [g EXCEPT !.isr = cl.isr \ out]
  /\ se' = se \ out
  /\ w' = [b \in Blocks |-> IF w[b] = NoW THEN NoW ELSE [w[b] EXCEPT !.done = @ \ out]]
  /\ UNCHANGED <<d, cp, rs>>

\* Also what is left when every member has lost acknowledged writes: the device fails.
ClientGone ==
  /\ cl.up
  /\ g.att < MaxAttach \/ cl.isr \subseteq cl.sus
  /\ cl' = NoClient /\ se' = {}
  \* what it had in flight may still land, until the next attach has fenced it
  /\ UNCHANGED <<d, g, w, cp, rs>>

LandLate(s, b) ==
  /\ ~cl.up /\ w[b] # NoW /\ s \in (g.isr \cup Target) \ w[b].done
  /\ d' = Store(s, b, w[b].n)
  /\ w' = [w EXCEPT ![b].done = @ \cup {s}]
  /\ UNCHANGED <<se, cl, cp, rs, g>>

CopyLate(b) ==
  /\ ~cl.up /\ rs # NoRs /\ cp[b] # -9
  /\ d' = Store(rs.t, b, cp[b])
  /\ cp' = [cp EXCEPT ![b] = -9]
  /\ UNCHANGED <<se, cl, w, rs, g>>

\* metad hears the dead client's request.
JoinLate ==
  /\ ~cl.up /\ rs.ph = "joining"
  /\ g' = [g EXCEPT !.isr = @ \cup {rs.t}]
  /\ rs' = NoRs
  /\ UNCHANGED <<d, se, cl, w, cp>>

\* A client that died while it made a marked block equal; it had fenced its predecessor before.
HalfAttach(src, s, b) ==
  /\ ~cl.up /\ g.att < MaxAttach /\ {src, s} \subseteq g.isr
  /\ ~d[src].blank /\ ~d[s].blank /\ Region(b) \in d[src].mark \cup d[s].mark
  /\ Cont(d[src].v[b]) # Cont(d[s].v[b])
  /\ d' = [d EXCEPT ![s].v[b] = d[src].v[b], ![s].pd[b] = {d[src].v[b]}, ![src].pd[b] = {d[src].v[b]},
                    ![s].mark = @ \cup {Region(b)}]
  /\ g' = [g EXCEPT !.att = @ + 1]
  /\ w' = [c \in Blocks |-> NoW] /\ cp' = [c \in Blocks |-> -9] /\ rs' = NoRs
  /\ UNCHANGED <<se, cl>>

\* Members that do not answer are removed; marked regions are made equal from one source, durably.
Attach(m, src) ==
  LET marked == Of(UNION {d[s].mark : s \in m})
      x(b)   == d[src].v[b]
      legal  == \A b \in Blocks : \A s \in m :
                  Cont(IF b \in marked THEN x(b) ELSE d[s].v[b]) \in {Cont(n) : n \in g.leg[b]}
      differ(s) == {b \in marked : Cont(d[s].v[b]) # Cont(x(b))}
  IN /\ ~cl.up /\ g.att < MaxAttach + 1 /\ m \subseteq g.isr /\ src \in m
     /\ \A s \in m : ~d[s].blank
     /\ d' = [s \in Stores |-> IF s \notin m THEN d[s]
               ELSE [d[s] EXCEPT !.v = [b \in Blocks |-> IF b \in differ(s) THEN x(b) ELSE @[b]],
                                 !.pd = [b \in Blocks |-> {IF b \in differ(s) THEN x(b) ELSE d[s].v[b]}],
                                 !.mark = @ \cup {Region(b) : b \in {y \in differ(s) :
                                             ~(Cont(x(y)) = -1 /\ Cont(d[s].v[y]) = -1)}}]]
     /\ cl' = [NoClient EXCEPT !.up = TRUE, !.isr = m, !.wit = m,
                 !.cur = [b \in Blocks |-> x(b)],
                 !.inc = [s \in Stores |-> IF s \in m THEN d[s].inc ELSE 0]]
     /\ se' = m
     /\ g' = [g EXCEPT !.isr = m, !.att = @ + 1, !.bad = IF legal THEN @ ELSE "illegal value at attach",
                       !.leg = [b \in Blocks |-> {x(b)}]]
     /\ w' = [b \in Blocks |-> NoW] /\ cp' = [b \in Blocks |-> -9] /\ rs' = NoRs

-----------------------------------------------------------------------------
(* The resilver *)

Healthy == cl.up /\ cl.isr \subseteq Usable /\ cl.out = {}

StartRs(t) ==
  /\ Healthy /\ rs = NoRs /\ t \in se \ cl.isr
  /\ rs' = [NoRs EXCEPT !.t = t, !.ph = "marks", !.wait = cl.isr \cup {t}]
  /\ w' = IF FInflight THEN w
          ELSE [b \in Blocks |-> IF w[b] = NoW THEN NoW ELSE [w[b] EXCEPT !.done = @ \cup {t}]]
  /\ UNCHANGED <<d, se, cl, cp, g>>

AskMarks(s) ==
  /\ cl.up /\ rs.ph = "marks" /\ s \in rs.wait \cap se
  /\ rs' = IF s = rs.t THEN [rs EXCEPT !.wait = @ \ {s}, !.own = d[s].mark]
           ELSE [rs EXCEPT !.wait = @ \ {s}, !.inh = @ \cup d[s].mark]
  /\ UNCHANGED <<d, se, cl, w, cp, g>>

\* Writes that the target has taken meanwhile need no copy.
Planned(dirty) == {b \in dirty : w[b] = NoW \/ rs.t \notin w[b].done}

Plan ==
  LET t == rs.t IN
  /\ cl.up /\ rs.ph = "marks" /\ rs.wait \cap (cl.isr \cup {t}) = {}
  /\ IF FBlank /\ d[t].blank /\ cl.pf[t] # d[t].inc
     THEN rs' = [rs EXCEPT !.ph = "presence", !.wait = {"again"}] /\ UNCHANGED cl
     ELSE /\ rs' = [rs EXCEPT !.ph = "copying"]
          /\ LET marks == Of(rs.inh \cup IF FOwn THEN rs.own ELSE {})
                 all   == cl.dirty[t] \cup IF t \in cl.wit THEN {} ELSE marks
             IN cl' = [cl EXCEPT !.dirty[t] = Planned(all), !.wit = @ \cup {t}]
  /\ UNCHANGED <<d, se, w, cp, g>>

AskPresenceOf(src) ==
  /\ cl.up /\ rs.ph = "presence" /\ rs.wait = {"again"} /\ src \in cl.isr \cap Usable
  /\ rs' = [rs EXCEPT !.wait = {src, rs.t}]
  /\ UNCHANGED <<d, se, cl, w, cp, g>>

AskPresence(s) ==
  /\ cl.up /\ rs.ph = "presence" /\ s \in rs.wait \cap se
  /\ rs' = [rs EXCEPT !.wait = @ \ {s}]
  /\ cl' = IF s = rs.t /\ ~FOwnPresence THEN cl
           ELSE [cl EXCEPT !.dirty[rs.t] = @ \cup {b \in Blocks : d[s].v[b] # Absent}]
  /\ UNCHANGED <<d, se, w, cp, g>>

PlanBlank ==
  /\ cl.up /\ rs.ph = "presence" /\ rs.wait = {}
  /\ rs' = [rs EXCEPT !.ph = "copying"]
  /\ cl' = [cl EXCEPT !.dirty[rs.t] = Planned(@), !.wit = @ \cup {rs.t}, !.pf[rs.t] = d[rs.t].inc]
  /\ UNCHANGED <<d, se, w, cp, g>>

CopyRead(b, src) ==
  /\ cl.up /\ rs.ph = "copying" /\ b \in cl.dirty[rs.t] /\ cp[b] = -9
  /\ FLock => w[b] = NoW
  /\ src \in cl.isr \cap Usable
  /\ cp' = [cp EXCEPT ![b] = d[src].v[b]]
  /\ UNCHANGED <<d, se, cl, w, rs, g>>

CopyLand(b) ==
  /\ cl.up /\ cp[b] # -9 /\ rs.t \in Usable
  /\ d' = Store(rs.t, b, cp[b])
  /\ cp' = [cp EXCEPT ![b] = -9]
  /\ cl' = [cl EXCEPT !.dirty[rs.t] = @ \ {b}, !.unf[rs.t] = @ \cup {b}]
  /\ UNCHANGED <<se, w, rs, g>>

Copied == cl.dirty[rs.t] = {} /\ \A b \in Blocks : cp[b] = -9

FlushT ==
  /\ cl.up /\ rs.ph = "copying" /\ Copied /\ rs.t \in Usable
  /\ IF FFlush THEN /\ d' = [d EXCEPT ![rs.t].pd = [b \in Blocks |-> {d[rs.t].v[b]}]]
                    /\ cl' = [cl EXCEPT !.unf[rs.t] = {}]
     ELSE UNCHANGED <<d, cl>>
  /\ rs' = [rs EXCEPT !.ph = "inheriting"]
  /\ UNCHANGED <<se, w, cp, g>>

Inherit ==
  /\ cl.up /\ rs.ph = "inheriting" /\ rs.t \in Usable
  /\ rs' = [rs EXCEPT !.ph = "completing"]
  /\ d' = IF FInherit THEN [d EXCEPT ![rs.t].mark = @ \cup rs.inh] ELSE d
  /\ UNCHANGED <<se, cl, w, cp, g>>

\* While a member is being removed metad is not asked; the target is flushed again afterwards.
Complete ==
  /\ cl.up /\ rs.ph = "completing" /\ rs.t \in Usable
  /\ d' = [d EXCEPT ![rs.t].blank = FALSE]
  /\ rs' = [rs EXCEPT !.ph = IF cl.out = {} THEN "joining" ELSE "copying"]
  /\ UNCHANGED <<se, cl, w, cp, g>>

Join ==
  /\ cl.up /\ rs.ph = "joining"
  /\ cl' = [cl EXCEPT !.isr = @ \cup {rs.t}, !.pf[rs.t] = 0]
  /\ g' = [g EXCEPT !.isr = cl.isr \cup {rs.t}]
  /\ rs' = NoRs
  /\ UNCHANGED <<d, se, w, cp>>

-----------------------------------------------------------------------------
Work ==
  \/ \E b \in Blocks : AckWrite(b) \/ CopyLand(b) \/ \E s \in Stores : Land(s, b) \/ CopyRead(b, s)
  \/ \E s \in Stores : FlushStore(s) \/ Reopen(s) \/ StartRs(s) \/ AskMarks(s)
                       \/ AskPresenceOf(s) \/ AskPresence(s)
  \/ (\E out \in SUBSET Stores : Propose(out) \/ Exclude(out)) \/ AckFlush \/ Plan \/ PlanBlank \/ FlushT \/ Inherit \/ Complete \/ Join
  \/ (cl.up /\ cl.isr \subseteq cl.sus /\ ClientGone)
  \/ \E m \in SUBSET Stores, src \in Stores : Attach(m, src)
Host   == Stable \/ \E b \in Blocks, z \in BOOLEAN : (z => Discards) /\ StartWrite(b, z)
After  == JoinLate \/ \E b \in Blocks : CopyLate(b) \/ \E s \in Stores : LandLate(s, b) \/ \E src \in Stores : HalfAttach(src, s, b)
Faults == ClientGone \/ After \/ \E s \in Stores : StoreCrash(s) \/ ConnBreak(s) \/ DiskLoss(s)

Next == Work \/ Host \/ Faults
Spec == Init /\ [][Next]_vars

Fair ==
  /\ \A b \in Blocks : WF_vars(AckWrite(b)) /\ WF_vars(CopyLand(b))
       /\ \A s \in Stores : WF_vars(Land(s, b)) /\ WF_vars(CopyRead(b, s))
  /\ \A s \in Stores : WF_vars(Reopen(s)) /\ WF_vars(StartRs(s))
       /\ WF_vars(AskMarks(s)) /\ WF_vars(AskPresenceOf(s)) /\ WF_vars(AskPresence(s))
  /\ WF_vars(\E out \in SUBSET Stores : Propose(out)) /\ WF_vars(\E out \in SUBSET Stores : Exclude(out))
  /\ WF_vars(Plan) /\ WF_vars(PlanBlank) /\ WF_vars(FlushT) /\ WF_vars(Inherit) /\ WF_vars(Complete)
  /\ WF_vars(Join) /\ WF_vars(\E m \in SUBSET Stores, src \in Stores : Attach(m, src))
  /\ WF_vars(cl.up /\ cl.isr \subseteq cl.sus /\ ClientGone)
FairSpec == Spec /\ Fair

-----------------------------------------------------------------------------
(* Properties *)

NoBad  == g.bad = "no"
ReadOK == cl.up => \A s \in cl.isr \cap Usable, b \in Blocks :
            w[b] = NoW => Cont(d[s].v[b]) = Cont(cl.cur[b])
DurOK  == \A s \in g.isr, b \in Blocks :
            d[s].blank \/ \A x \in d[s].pd[b] : Cont(x) \in {Cont(n) : n \in g.leg[b]}
ConvOK == \A r \in Regions :
            (\A s \in g.isr : r \notin d[s].mark /\ ~d[s].blank) =>
              \A s, t \in g.isr, b \in Of({r}) :
                \A x \in d[s].pd[b] : Cont(x) = Cont(d[t].v[b])

Heals == <>[](cl.up /\ cl.isr = Stores /\ rs = NoRs)

\* Reachability: meant to be broken.
NeverRejoined == ~(g.nw > 0 /\ g.crash > 0 /\ g.att > 1 /\ cl.up /\ cl.isr = Stores /\ cl.cur # [b \in Blocks |-> V0(b)])
NeverWhole    == ~(g.loss > 0 /\ cl.up /\ cl.isr = Stores /\ \A s \in Stores : ~d[s].blank)
Symm == Permutations(Stores)
=============================================================================
