"""Who gets in: tokens, tickets, origins, revocations, and the state that streamers share."""
