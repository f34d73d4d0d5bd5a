---------------------------- MODULE MergeForward ----------------------------
(***************************************************************************)
(* One extent of a slice in a store: the cells that its generations have of  *)
(* it, snapshots that come and are dropped, merges, and power cuts with      *)
(* replay of the journal onto the pages of the last checkpoint.              *)
(*                                                                          *)
(* Taken as one step: a journal record (it is there as a whole or not), all  *)
(* cells of the extent (one page), a copy of several blocks.  The client     *)
(* keeps overlapping operations apart.  A snapshot takes what was in flight  *)
(* when it was made; that it is complete is a matter of the client.  Left    *)
(* out: renaming what is left of a part, the room in pages and journal,      *)
(* durable writes, marks.                                                    *)
(*                                                                          *)
(* F* constants switch single mechanisms off, to show that each is needed.   *)
(***************************************************************************)
EXTENDS Integers, Sequences, FiniteSets, TLC

CONSTANTS
  Blocks,        \* of the extent
  Extents,       \* physical ones: positive numbers
  Begun,         \* the head at the start; before it snapshots, the oldest with all blocks, the others with the first
  HeadHas,       \* blocks that the head has at the start
  MaxGen,        \* generations in the whole behaviour
  MaxWrites,     \* writes and zeroes
  MaxZeroes,     \* of these, at most
  MaxDrops,      \* deleted snapshots
  MaxCrash,      \* power cuts
  MaxCkpt,       \* checkpoints
  MaxReads,      \* reads that take their time
  AnyExtent,     \* a write takes any free extent, and any name for a new cell that will do
  FData,         \* data is durable before the record that names it is written
  FZero,         \* a zero is a state of its own, and not the absence of data
  FCopy,         \* blocks that the newer cell lacks are copied; it keeps its extent
  FCopyFirst,    \* no merge while a change of the extent is not durable: copies above all
  FExclude,      \* no merge while a checkpoint runs, no checkpoint while a merge is not durable
  FFreed,        \* what a zero frees is given back when the record that frees it is durable
  FFreedMerge,   \* ... and so is what a merge frees
  FReach,        \* ... and nothing in flight can reach it
  FDrain,        \* no merge while writes from before the deletion are in flight
  FPark,         \* writes and zeroes wait while the extent's blocks are being copied
  FPin,          \* no merge of a cell whose first writes are in flight
  FHide          \* an older cell is changed only where nothing newer of the same owner hides it

Gens == 1..MaxGen
VARIABLES
  mem,   \* the store's mind [head, snaps, cell, free]
  dev,   \* the medium: per extent and block what a read gets, and what a power cut may leave
  log,   \* the journal [jr, lane, wait, told]: durable after the tail, not durable, and who waits
  img,   \* pages of the last checkpoint [head, snaps, cell]
  open,  \* changes whose data may not be durable [ch, freed]
  fl,    \* the flush that runs [st, ch, freed, cov]
  ck,    \* the checkpoint that runs [st, tail, gens, cell]
  mg,    \* merging [st, f, t, vals, freed, after, quar]
  ops,   \* the write in flight on each block
  rd,    \* a read in flight
  run,   \* a change of generations that is on its way
  h,     \* ghost: what each generation wrote [vs, cur]
  g      \* ghosts and budgets
vars == <<mem, dev, log, img, open, fl, ck, mg, ops, rd, run, h, g>>

-----------------------------------------------------------------------------
(* Cells and generations *)

None    == [ph |-> 0, st |-> [b \in Blocks |-> "a"]]
NoCh    == [k \in Gens |-> [on |-> FALSE, ph |-> 0, pr |-> {}, ze |-> {}]]
NoFl    == [st |-> "no", ch |-> NoCh, freed |-> {}, cov |-> <<>>]
NoCk    == [st |-> "no", tail |-> 0, gens |-> <<>>, cell |-> <<>>]
NoOp    == [n |-> 0, key |-> 0, x |-> 0, g |-> 0, first |-> FALSE]
NoRd    == [b |-> 0, x |-> 0, g |-> 0, want |-> 0]
NoRun   == [t |-> "no", g |-> 0]
Max(S)  == CHOOSE x \in S : \A y \in S : y <= x
Min(S)  == CHOOSE x \in S : \A y \in S : x <= y
Those(c, what) == {b \in Blocks : c.st[b] = what}
All(im)        == im.snaps \cup {im.head}
Heir(im, k)    == Min({s \in All(im) : s >= k})
Own(im, k)     == {j \in 1..k : \A s \in im.snaps : s < k => j > s}
Used(im)       == {k \in Gens : im.cell[k] # None}

\* What a generation shows of a block: the newest cell that has something to say.
Says(im, k, b) == {j \in 1..k : im.cell[j].st[b] # "a"}
Source(im, k, b) == IF Says(im, k, b) = {} THEN 0
                    ELSE LET j == Max(Says(im, k, b)) IN
                         IF im.cell[j].st[b] = "p" THEN im.cell[j].ph ELSE 0
Read(im, dv, k, b) == LET x == Source(im, k, b) IN IF x = 0 THEN 0 ELSE dv[x][b].now

\* Where a write of the head goes.
Keys(im) == LET own == {j \in Own(im, im.head) : im.cell[j] # None}
            IN IF own # {} THEN {IF FHide THEN Max(own) ELSE Min(own)}
               ELSE IF AnyExtent THEN Own(im, im.head) ELSE {im.head}
Finds(im) == IF AnyExtent THEN im.free ELSE {Min(im.free)}

Seen(new, old) == TLCEval([b \in Blocks |-> IF new[b] = "a" THEN old[b] ELSE new[b]])
Lacks(cell, f, t) == {b \in Blocks : cell[t].st[b] = "a" /\ cell[f].st[b] = "p"}

\* The older cell goes over to the newer; with the extent that nothing names any more.
Merged(cell, f, t) ==
  LET old == cell[f]  new == cell[t]
      keep == new.ph # 0 /\ (FCopy \/ Lacks(cell, f, t) = {})
      ph == IF keep THEN new.ph ELSE IF Lacks(cell, f, t) # {} THEN old.ph ELSE 0
  IN [cell  |-> [cell EXCEPT ![f] = None, ![t] = [ph |-> ph, st |-> Seen(new.st, old.st)]],
      freed |-> {old.ph, new.ph} \ {0, ph},
      lost  |-> FCopy /\ new.ph # 0 /\ Lacks(cell, f, t) # {}]

-----------------------------------------------------------------------------
(* The journal *)

Replayed(c, e) ==
  LET moved == IF c.ph = e.ph THEN c.st
               ELSE TLCEval([b \in Blocks |-> IF c.st[b] = "p" THEN "z" ELSE c.st[b]])
  IN [ph |-> e.ph, st |-> TLCEval([b \in Blocks |-> IF b \in e.pr THEN "p" ELSE IF b \in e.ze THEN "z" ELSE moved[b]])]

Changed(im, e) ==
  CASE e.t = "B" -> IF e.g > im.head THEN [im EXCEPT !.head = e.g, !.snaps = @ \cup {im.head}] ELSE im
    [] e.t = "D" -> [im EXCEPT !.snaps = @ \ {e.g}]
    [] OTHER     -> im

Apply(im, e) ==
  CASE e.t = "E" -> [im EXCEPT !.cell[e.g] = Replayed(@, e)]
    [] e.t = "M" -> IF im.cell[e.f] = None THEN im
                    ELSE LET mm == Merged(im.cell, e.f, e.g) IN
                         [im EXCEPT !.cell = mm.cell, !.bad = @ \/ mm.lost]
    [] OTHER     -> Changed(im, e)

RECURSIVE Replay(_, _)
Replay(im, es) == IF es = <<>> THEN im ELSE Replay(TLCEval(Apply(im, Head(es))), Tail(es))

RECURSIVE Entries(_, _)
Entries(ch, k) == IF k > MaxGen THEN <<>>
                  ELSE (IF ch[k].on THEN <<[t |-> "E", g |-> k, ph |-> ch[k].ph, pr |-> ch[k].pr, ze |-> ch[k].ze]>>
                        ELSE <<>>) \o Entries(ch, k + 1)

Note(ch, k, ph, pr, ze) ==
  [ch EXCEPT ![k] = [on |-> TRUE, ph |-> ph, pr |-> (@.pr \ ze) \cup pr, ze |-> (@.ze \ pr) \cup ze]]
Pending == open.ch # NoCh \/ fl.ch # NoCh

Append1(e, who) == log' = [log EXCEPT !.lane = Append(@, e), !.wait = @ \cup {who}]
Hears(who)      == who \in log.told /\ log' = [log EXCEPT !.told = @ \ {who}]
Awaits(who)     == who \in log.wait \cup log.told

\* A device flush; what is in flight stays open.
Flushed == [x \in Extents |-> [b \in Blocks |->
             [dev[x][b] EXCEPT !.pd = {dev[x][b].now} \cup {ops[c].n : c \in {c \in Blocks : c = b /\ ops[c].n # 0 /\ ops[c].x = x}}]]]

-----------------------------------------------------------------------------
(* Ghosts: the versions that each generation wrote of a block; 0: none, it is its parent's *)

Parent(gs, k) == {s \in gs : s < k}
RECURSIVE Value(_, _, _, _, _)
Value(hh, gs, k, b, n) ==
  IF n # 0 THEN IF n \in g.z THEN 0 ELSE n
  ELSE IF Parent(gs, k) = {} THEN 0
       ELSE LET p == Max(Parent(gs, k)) IN Value(hh, gs, p, b, hh[p][b].cur)
Want(k, b) == Value(h, All(mem), k, b, h[k][b].cur)

Untouched == [b \in Blocks |-> [vs |-> {0}, cur |-> 0]]
\* What only the dropped generation had is the next one's.
Inherit(hh, k, to) ==
  [hh EXCEPT ![k] = Untouched,
             ![to] = [b \in Blocks |-> [vs  |-> IF 0 \in @[b].vs THEN (@[b].vs \ {0}) \cup hh[k][b].vs ELSE @[b].vs,
                                        cur |-> IF @[b].cur = 0 THEN hh[k][b].cur ELSE @[b].cur]]]
Ghost(hh, im, e) == IF e.t = "D" /\ e.g \in im.snaps THEN Inherit(hh, e.g, Heir(im, e.g + 1)) ELSE hh

\* Every block is found to be something it may be; oldest generation first.
RECURSIVE Pin(_, _, _, _)
Pin(hh, im, dv, gs) ==
  IF gs = {} THEN [h |-> hh, bad |-> FALSE]
  ELSE LET k == Min(gs)
           fits(b) == {n \in hh[k][b].vs : Value(hh, All(im), k, b, n) = Read(im, dv, k, b)}
           hit == TLCEval([b \in Blocks |-> IF fits(b) = {} THEN -1 ELSE Max(fits(b))])
           bad == \E b \in Blocks : hit[b] = -1
           own == TLCEval([b \in Blocks |-> [vs |-> {hit[b]}, cur |-> hit[b]]])
       IN IF bad THEN [h |-> hh, bad |-> TRUE]
          ELSE Pin([hh EXCEPT ![k] = own], im, dv, gs \ {k})

-----------------------------------------------------------------------------
(* At the start snapshots and head are durable, and the journal is empty *)

First == Min(Blocks)
Has0(k)  == IF k > Begun THEN {} ELSE IF k = Begun THEN HeadHas ELSE IF k = 1 THEN Blocks ELSE {First}
Cell0(k) == IF Has0(k) = {} THEN None
            ELSE [ph |-> k, st |-> [b \in Blocks |-> IF b \in Has0(k) THEN "p" ELSE "a"]]
Num0(k, b) == IF Cell0(k).st[b] = "p" THEN (k - 1) * Cardinality(Blocks) + b ELSE 0
Mind0 == [head |-> Begun, snaps |-> 1..(Begun - 1), cell |-> [k \in Gens |-> Cell0(k)], bad |-> FALSE]
Init ==
  /\ mem = [head |-> Mind0.head, snaps |-> Mind0.snaps, cell |-> Mind0.cell, free |-> Extents \ {Cell0(k).ph : k \in Gens}, bad |-> FALSE]
  /\ img = Mind0
  /\ dev = [x \in Extents |-> [b \in Blocks |-> LET n == IF x \in Gens THEN Num0(x, b) ELSE 0 IN [now |-> n, pd |-> {n}]]]
  /\ log = [jr |-> <<>>, lane |-> <<>>, wait |-> {}, told |-> {}]
  /\ open = [ch |-> NoCh, freed |-> {}] /\ fl = NoFl /\ ck = NoCk
  /\ mg = [st |-> "no", f |-> 0, t |-> 0, vals |-> <<>>, freed |-> {}, after |-> {}, quar |-> {}]
  /\ ops = [b \in Blocks |-> NoOp] /\ rd = NoRd /\ run = NoRun
  /\ h = [k \in Gens |-> [b \in Blocks |-> [vs |-> {Num0(k, b)}, cur |-> Num0(k, b)]]]
  /\ g = [nw |-> IF Begun = 1 /\ HeadHas = {} THEN 0 ELSE Begun * Cardinality(Blocks), w |-> 0, z |-> {}, zs |-> 0, drops |-> 0, crash |-> 0, ckpt |-> 0, rds |-> 0, bad |-> "no"]

Free(b) == ops[b] = NoOp /\ ~(rd.b = b /\ rd.g = mem.head) /\ (FPark => mg.st # "copy")
Pinned(k) == (\E b \in Blocks : ops[b].first /\ ops[b].key = k) \/ (mg.st = "copy" /\ mg.t = k)

-----------------------------------------------------------------------------
(* The host *)

WriteTo(b, k, x) ==
  LET c == mem.cell[k]  n == g.nw + 1 IN
  /\ ops' = [ops EXCEPT ![b] = [n |-> n, key |-> k, x |-> x, g |-> mem.head, first |-> c.st[b] # "p"]]
  /\ mem' = [mem EXCEPT !.cell[k].ph = x, !.free = @ \ {x}]
  /\ dev' = [dev EXCEPT ![x][b].pd = @ \cup {n}]
  /\ h' = [h EXCEPT ![mem.head][b].vs = @ \cup {n}]
  /\ g' = [g EXCEPT !.nw = n, !.w = @ + 1]
  /\ UNCHANGED <<log, img, open, fl, ck, mg, rd, run>>

StartWrite(b) ==
  /\ Free(b) /\ g.w < MaxWrites
  /\ \E k \in Keys(mem) :
       IF mem.cell[k].ph # 0 THEN WriteTo(b, k, mem.cell[k].ph)
       ELSE mem.free # {} /\ \E x \in Finds(mem) : WriteTo(b, k, x)

LandWrite(b) ==
  LET o == ops[b]  k == Heir(mem, o.g) IN
  /\ o # NoOp
  /\ ops' = [ops EXCEPT ![b] = NoOp]
  /\ dev' = [dev EXCEPT ![o.x][b] = [now |-> o.n, pd |-> @.pd \cup {o.n}]]
  /\ IF o.first
     THEN /\ mem' = [mem EXCEPT !.cell[o.key].st[b] = "p"]
          /\ open' = [open EXCEPT !.ch = Note(@, o.key, mem.cell[o.key].ph, {b}, {})]
     ELSE UNCHANGED <<mem, open>>
  /\ h' = [h EXCEPT ![k][b].cur = o.n]
  /\ UNCHANGED <<log, img, fl, ck, mg, rd, run, g>>

\* Where zeroes are seen already there is nothing to do.
ZeroIn(b, k) ==
  LET c == mem.cell[k]  n == g.nw + 1
      st == [c.st EXCEPT ![b] = IF FZero THEN "z" ELSE "a"]
      gone == c.ph # 0 /\ Those([c EXCEPT !.st = st], "p") = {} /\ ~Pinned(k)
      ph == IF gone THEN 0 ELSE c.ph
      freed == IF gone THEN {c.ph} ELSE {} IN
  /\ Free(b) /\ g.w < MaxWrites /\ g.zs < MaxZeroes
  /\ Source(mem, mem.head, b) # 0
  /\ mem' = [mem EXCEPT !.cell[k] = [ph |-> ph, st |-> st]]
  /\ open' = [ch |-> Note(open.ch, k, ph, {}, IF FZero THEN {b} ELSE {}), freed |-> IF FFreed THEN open.freed \cup freed ELSE open.freed]
  /\ mg' = IF FFreed THEN mg ELSE [mg EXCEPT !.quar = @ \cup freed]
  /\ h' = [h EXCEPT ![mem.head][b] = [vs |-> @.vs \cup {n}, cur |-> n]]
  /\ g' = [g EXCEPT !.nw = n, !.w = @ + 1, !.zs = @ + 1, !.z = @ \cup {n}]
  /\ UNCHANGED <<dev, log, img, fl, ck, ops, rd, run>>
Zero(b) == \E k \in Keys(mem) : ZeroIn(b, k)

\* Of data only; zeroes need no device.
StartRead(k, b) ==
  /\ rd = NoRd /\ g.rds < MaxReads /\ k \in All(mem) /\ ops[b] = NoOp /\ Source(mem, k, b) # 0
  /\ rd' = [b |-> b, x |-> Source(mem, k, b), g |-> k, want |-> Want(k, b)]
  /\ g' = [g EXCEPT !.rds = @ + 1]
  /\ UNCHANGED <<mem, dev, log, img, open, fl, ck, mg, ops, run, h>>

EndRead ==
  /\ rd # NoRd
  /\ rd' = NoRd
  /\ g' = [g EXCEPT !.bad = IF rd.g \in All(mem) /\ dev[rd.x][rd.b].now # rd.want THEN "read of something else" ELSE @]
  /\ UNCHANGED <<mem, dev, log, img, open, fl, ck, mg, ops, run, h>>

-----------------------------------------------------------------------------
(* Flush and journal *)

StartFlush ==
  /\ fl.st = "no"
  /\ open.ch # NoCh \/ open.freed # {} \/ \E k \in Gens, b \in Blocks : Cardinality({n \in h[k][b].vs : n <= h[k][b].cur}) > 1
  /\ fl' = [st |-> "dev", ch |-> open.ch, freed |-> open.freed, cov |-> [k \in Gens |-> [b \in Blocks |-> h[k][b].cur]]]
  /\ open' = [ch |-> NoCh, freed |-> {}]
  /\ UNCHANGED <<mem, dev, log, img, ck, mg, ops, rd, run, h, g>>

FlushDevice ==
  /\ fl.st = "dev"
  /\ fl' = [fl EXCEPT !.st = "rec"]
  /\ dev' = IF FData THEN Flushed ELSE dev
  /\ IF fl.ch = NoCh THEN log' = [log EXCEPT !.told = @ \cup {"fl"}]
     ELSE log' = [log EXCEPT !.lane = @ \o Entries(fl.ch, 1), !.wait = @ \cup {"fl"}]
  /\ UNCHANGED <<mem, img, open, ck, mg, ops, rd, run, h, g>>

WriteJournal ==
  /\ log.lane # <<>>
  /\ log' = [jr |-> log.jr \o log.lane, lane |-> <<>>, wait |-> {}, told |-> log.told \cup log.wait]
  /\ UNCHANGED <<mem, dev, img, open, fl, ck, mg, ops, rd, run, h, g>>

\* What a dropped generation had is its heir's: nothing is said about that one.
FlushDone ==
  /\ fl.st = "rec" /\ Hears("fl")
  /\ fl' = NoFl
  /\ mg' = [mg EXCEPT !.quar = @ \cup fl.freed]
  /\ h' = [k \in Gens |-> [b \in Blocks |-> IF k \in All(mem) THEN [h[k][b] EXCEPT !.vs = {n \in @ : n >= fl.cov[k][b]}] ELSE h[k][b]]]
  /\ UNCHANGED <<mem, dev, img, open, ck, ops, rd, run, g>>

Release(x) ==
  /\ x \in mg.quar
  /\ FReach => /\ rd.x # x /\ \A b \in Blocks : ops[b].x # x
               /\ mg.st = "copy" => x \notin {mem.cell[mg.f].ph, mem.cell[mg.t].ph}
  /\ mg' = [mg EXCEPT !.quar = @ \ {x}]
  /\ mem' = [mem EXCEPT !.free = @ \cup {x}]
  /\ UNCHANGED <<dev, log, img, open, fl, ck, ops, rd, run, h, g>>

-----------------------------------------------------------------------------
(* Generations *)

Ask(e) == run = NoRun /\ run' = e /\ Append1(e, "ch")

Begin ==
  /\ mem.head < MaxGen /\ Ask([t |-> "B", g |-> mem.head + 1])
  /\ UNCHANGED <<mem, dev, img, open, fl, ck, mg, ops, rd, h, g>>

Drop(k) ==
  /\ k \in mem.snaps /\ g.drops < MaxDrops /\ Ask([t |-> "D", g |-> k])
  /\ g' = [g EXCEPT !.drops = @ + 1]
  /\ UNCHANGED <<mem, dev, img, open, fl, ck, mg, ops, rd, h>>

ChangeDone ==
  /\ run # NoRun /\ Hears("ch")
  /\ mem' = Changed(mem, run) /\ h' = TLCEval(Ghost(h, mem, run))
  /\ mg' = IF run.t = "D" THEN [mg EXCEPT !.after = {ops[b].n : b \in Blocks} \ {0}] ELSE mg
  /\ run' = NoRun
  /\ UNCHANGED <<dev, img, open, fl, ck, ops, rd, g>>

-----------------------------------------------------------------------------
(* Merging: the newest pair of cells that one generation owns *)

Pairs == {p \in Used(mem) \X Used(mem) : /\ p[1] < p[2] /\ Heir(mem, p[1]) = Heir(mem, p[2])
                                         /\ \A k \in Used(mem) : k <= p[1] \/ k >= p[2]}
Pair == CHOOSE p \in Pairs : \A q \in Pairs : q[2] <= p[2]
MayMerge ==
  /\ Pairs # {} /\ mg.st = "no"
  /\ ~Awaits("mg") \/ (log.lane # <<>> /\ log.lane[Len(log.lane)].t = "M")     \* or of the same record
  /\ FExclude => ck = NoCk
  /\ FCopyFirst => ~Pending
  /\ FDrain => \A b \in Blocks : ops[b].n \notin mg.after
  /\ FPin => ~Pinned(Pair[1]) /\ ~Pinned(Pair[2])
NeedsCopy == FCopy /\ mem.cell[Pair[2]].ph # 0 /\ Lacks(mem.cell, Pair[1], Pair[2]) # {}

StartCopy ==
  LET f == Pair[1]  t == Pair[2]  bs == Lacks(mem.cell, f, t) IN
  /\ MayMerge /\ NeedsCopy
  /\ mg' = [mg EXCEPT !.st = "copy", !.f = f, !.t = t, !.vals = [b \in bs |-> dev[mem.cell[f].ph][b].now]]
  /\ UNCHANGED <<mem, dev, log, img, open, fl, ck, ops, rd, run, h, g>>

LandCopy ==
  LET x == mem.cell[mg.t].ph  bs == DOMAIN mg.vals IN
  /\ mg.st = "copy"
  /\ dev' = [dev EXCEPT ![x] = [b \in Blocks |-> IF b \in bs THEN [now |-> mg.vals[b], pd |-> @[b].pd \cup {mg.vals[b]}] ELSE @[b]]]
  /\ mem' = [mem EXCEPT !.cell[mg.t].st = [b \in Blocks |-> IF b \in bs THEN "p" ELSE @[b]]]
  /\ open' = [open EXCEPT !.ch = Note(@, mg.t, x, bs, {})]
  /\ mg' = [mg EXCEPT !.st = "no", !.f = 0, !.t = 0, !.vals = <<>>]
  /\ UNCHANGED <<log, img, fl, ck, ops, rd, run, h, g>>

MergeStep ==
  LET mm == Merged(mem.cell, Pair[1], Pair[2]) IN
  /\ MayMerge /\ ~NeedsCopy
  /\ mem' = [mem EXCEPT !.cell = mm.cell]
  /\ Append1([t |-> "M", f |-> Pair[1], g |-> Pair[2]], "mg")
  /\ mg' = IF FFreedMerge THEN [mg EXCEPT !.freed = @ \cup mm.freed] ELSE [mg EXCEPT !.quar = @ \cup mm.freed]
  /\ UNCHANGED <<dev, img, open, fl, ck, ops, rd, run, h, g>>

MergeDone ==
  /\ Hears("mg")
  /\ mg' = [mg EXCEPT !.quar = @ \cup mg.freed, !.freed = {}]
  /\ UNCHANGED <<mem, dev, img, open, fl, ck, ops, rd, run, h, g>>

-----------------------------------------------------------------------------
(* Checkpoints.  The page of the generations tells a change that is on its way as done. *)

Start ==
  /\ ck = NoCk /\ g.ckpt < MaxCkpt
  /\ FExclude => ~Awaits("mg")
  /\ ck' = [NoCk EXCEPT !.st = "run", !.tail = Len(log.jr)]
  /\ g' = [g EXCEPT !.ckpt = @ + 1]
  /\ UNCHANGED <<mem, dev, log, img, open, fl, mg, ops, rd, run, h>>

CaptureGens ==
  /\ ck # NoCk /\ ck.gens = <<>>
  /\ LET im == Changed(mem, run) IN ck' = [ck EXCEPT !.gens = <<im.head, im.snaps>>]
  /\ UNCHANGED <<mem, dev, log, img, open, fl, mg, ops, rd, run, h, g>>

CaptureCells ==
  /\ ck # NoCk /\ ck.cell = <<>>
  /\ ck' = [ck EXCEPT !.cell = <<mem.cell>>]
  /\ UNCHANGED <<mem, dev, log, img, open, fl, mg, ops, rd, run, h, g>>

Switch ==
  /\ ck # NoCk /\ ck.gens # <<>> /\ ck.cell # <<>>
  /\ dev' = Flushed
  /\ img' = [head |-> ck.gens[1], snaps |-> ck.gens[2], cell |-> ck.cell[1], bad |-> FALSE]
  /\ log' = [log EXCEPT !.jr = SubSeq(@, ck.tail + 1, Len(@))]
  /\ ck' = NoCk
  /\ UNCHANGED <<mem, open, fl, mg, ops, rd, run, h, g>>

-----------------------------------------------------------------------------
(* The power fails; the record under way is there or not.  Everything that no page names is free. *)

Named(cell) == {cell[k].ph : k \in Gens} \ {0}
Places(im)  == {<<x, b>> \in Extents \X Blocks : \E k \in Gens : im.cell[k].ph = x /\ im.cell[k].st[b] = "p"}

Crash ==
  /\ g.crash < MaxCrash
  /\ \E there \in BOOLEAN :
       /\ there => log.lane # <<>>
       /\ LET jr == IF there THEN log.jr \o log.lane ELSE log.jr
              im == TLCEval(Replay(img, jr))
              hh == IF run = NoRun \/ Changed(mem, run) = mem \/ All(im) # All(Changed(mem, run)) THEN h ELSE Ghost(h, mem, run)
              all == TLCEval(Places(im))
              may == TLCEval([p \in all |-> dev[p[1]][p[2]].pd])
              torn == TLCEval({p \in all : Cardinality(may[p]) > 1})
          IN \E e \in [torn -> UNION {may[p] : p \in torn}] :
               /\ \A p \in torn : e[p] \in may[p]
               /\ LET v(p) == IF p \in torn THEN e[p] ELSE IF p \in all THEN CHOOSE y \in may[p] : TRUE ELSE 0
                      dv == TLCEval([x \in Extents |-> TLCEval([b \in Blocks |-> [now |-> v(<<x, b>>), pd |-> {v(<<x, b>>)}]])])
                      pin == TLCEval(Pin(hh, im, dv, All(im)))
                  IN /\ dev' = dv
                     /\ h' = pin.h
                     /\ g' = [g EXCEPT !.crash = @ + 1,
                                !.bad = IF im.bad THEN "damage" ELSE IF pin.bad THEN "something else after a crash" ELSE @]
               /\ mem' = [head |-> im.head, snaps |-> im.snaps, cell |-> im.cell, free |-> Extents \ Named(im.cell), bad |-> FALSE]
               /\ log' = [jr |-> jr, lane |-> <<>>, wait |-> {}, told |-> {}]
  /\ open' = [ch |-> NoCh, freed |-> {}] /\ fl' = NoFl /\ ck' = NoCk /\ run' = NoRun
  /\ mg' = [st |-> "no", f |-> 0, t |-> 0, vals |-> <<>>, freed |-> {}, after |-> {}, quar |-> {}]
  /\ ops' = [b \in Blocks |-> NoOp] /\ rd' = NoRd
  /\ UNCHANGED img

-----------------------------------------------------------------------------
Work == \/ \E b \in Blocks : LandWrite(b)
        \/ EndRead \/ StartFlush \/ FlushDevice \/ WriteJournal \/ FlushDone \/ ChangeDone
        \/ StartCopy \/ LandCopy \/ MergeStep \/ MergeDone \/ CaptureGens \/ CaptureCells \/ Switch
        \/ \E x \in Extents : Release(x)
Host == \/ \E b \in Blocks : StartWrite(b) \/ Zero(b) \/ \E k \in Gens : StartRead(k, b)
        \/ Begin \/ \E k \in Gens : Drop(k)
\* Nothing new comes after the last power cut: what it left is looked at, and merged.
Next == Work \/ (Host /\ (MaxCrash = 0 \/ g.crash < MaxCrash)) \/ Start \/ Crash
Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ WF_vars(Work)

-----------------------------------------------------------------------------
(* Properties *)

NoBad == g.bad = "no"

\* Every generation reads as what was completed in it last: snapshots for ever the same.
ReadOK == \A k \in All(mem), b \in Blocks : Read(mem, dev, k, b) = Want(k, b)

\* No extent has two owners.
NameOK == /\ \A k, j \in Gens : k # j /\ mem.cell[k].ph # 0 => mem.cell[k].ph # mem.cell[j].ph
          /\ Named(mem.cell) \cap (mem.free \cup mg.quar) = {}

\* No extent is nobody's.
SpaceOK == Extents = Named(mem.cell) \cup mem.free \cup mg.quar \cup mg.freed \cup open.freed \cup fl.freed

\* In the end one cell is left for each generation, and all other space is free.
Merges == <>[](Pairs = {} /\ mg.quar = {} /\ mg.freed = {})

\* Reachability: meant to be broken.
NeverMerged == ~(g.crash > 0 /\ g.drops > 0 /\ g.w > 1 /\ Pairs = {} /\ Used(mem) # {} /\ ~Pending
                 /\ \E i \in 1..Len(log.jr) : log.jr[i].t = "M")
NeverCopied == mg.st # "copy"
=============================================================================
