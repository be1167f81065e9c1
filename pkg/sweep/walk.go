package sweep

// walk goes through a recording from one durable point to the next. visit is
// called before each flush and before each write with FUA, and at the end, with
// the writes that are not durable by then; before is the index of the entry
// that could not complete. States that one call can choose contain those of any cut
// since the flush before.
func walk(rec *Recording, e *epoch, visit func(before int) error) error {
	seen := 0 // writes that the last visit saw
	stop := func(before int) error {
		if len(e.writes) == seen && before < len(rec.Entries) {
			return nil // nothing new to choose from
		}
		seen = len(e.writes)
		e.number++
		if err := e.build(); err != nil {
			return err
		}
		return visit(before)
	}
	for i, entry := range rec.Entries {
		if entry.Flags&Flush != 0 && entry.Flags&Mark == 0 {
			if err := stop(i); err != nil {
				return err
			}
			if err := e.flush(); err != nil {
				return err
			}
			seen, e.since = 0, i+1
		}
		if !entry.writes() || !e.d.g.matters(entry.Sector, entry.Count) {
			continue
		}
		w := write{entry: i, first: entry.Sector, count: entry.Count, data: entry.Data}
		if entry.Flags&Discard != 0 {
			w.data = zeros
		}
		if entry.Flags&FUA == 0 {
			e.writes = append(e.writes, w)
			continue
		}
		// A cut while the write is under way may leave any part of it, so
		// it is a choice like others first.
		e.writes = append(e.writes, w)
		if err := stop(i); err != nil {
			return err
		}
		e.writes = e.writes[:len(e.writes)-1]
		seen, e.since = len(e.writes), i+1
		if err := e.supersede(w); err != nil {
			return err
		}
	}
	return stop(len(rec.Entries))
}
