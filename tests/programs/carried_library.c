/* The library of carried.c: code, and a table that is not touched before the restart. */
extern const unsigned char carried_table[1 << 16];
extern const unsigned char carried_table[1 << 16];
const unsigned char carried_table[1 << 16] = {[0 ... (1 << 16) - 1] = 0x5a};

long carried_step(long x) { return (long)((unsigned long)x * 6364136223846793005ul + 1442695040888963407ul); }
