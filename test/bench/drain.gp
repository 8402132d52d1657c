# The plot of test/bench/drain: reads drain.dat in the directory "area", writes
# "target".  Each line is a contender: title, median, lowest and highest events/s.

set terminal svg size 1300,480 font 'sans-serif,13' background '#ffffff'
set output target
set style fill solid 0.8 border -1
set grid ytics lc rgb '#dddddd'
set border 3
set tics nomirror
set xtics scale 0
set bmargin 4
set yrange [0:*]
set offsets 0, 0, graph 0.1, 0
set linetype 1 lc rgb '#4878a8'
set style data histograms
set style histogram errorbars gap 1 lw 1
set ylabel 'events/s: median, lowest and highest round'
set title 'Drain of '.events.' waiting events'
plot area.'/drain.dat' using 2:3:4:xtic(1) notitle, \
	'' using 0:4:(sprintf('%.0f', $2)) with labels offset 0, 0.7 font ',10' notitle
